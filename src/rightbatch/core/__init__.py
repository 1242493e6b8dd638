"""What all rooms stand on: errors, units, estimates, files, guards, trees."""
