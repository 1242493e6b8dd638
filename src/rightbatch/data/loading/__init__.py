"""From indices to batches: workers, ranks, state."""
