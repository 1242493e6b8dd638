"""From squared norms to a noise scale with its interval."""
