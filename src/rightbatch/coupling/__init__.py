"""What happens when the examples of a batch touch each other."""
