"""Peak bytes of a step before they are used."""
