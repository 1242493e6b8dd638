"""Groups of examples told apart inside one backward pass."""
