"""What a bug report should hold: facts about this machine, each judged, and a self-test.

Facts are read in one place and judged in another, so that made-up machines can be judged too. Nothing
here imports torch before it is asked about: the first lines are there at once.
"""
