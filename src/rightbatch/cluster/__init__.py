"""Many devices, on paper, from the measurements of one."""
