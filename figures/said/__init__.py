"""What studies say of what they found: sentences and small tables, a module a question."""
