"""What a loader really does."""
