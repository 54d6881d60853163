"""ST-AR and its baseline: objective, teacher, learner, the loop, and what is made of a run."""
