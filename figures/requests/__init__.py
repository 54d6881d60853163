"""What can be asked: one request a question, its fields with their help. Nothing heavy is imported."""
