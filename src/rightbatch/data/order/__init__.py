"""Which examples come next, as functions of seed, epoch and position."""
