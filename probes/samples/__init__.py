"""What generated images are judged by."""
