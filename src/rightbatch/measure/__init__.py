"""Facts of this job on this machine, each with its interval."""
