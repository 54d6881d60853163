"""How questions are answered: one study each, from a request to tables, figures and sentences."""
