"""Which tokens of the prefix a step's score owes itself to."""
