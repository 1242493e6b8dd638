"""What knows nothing of batches: errors, units, estimates, files, guards."""
