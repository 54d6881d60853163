"""What the measuring commands do with their options."""
