"""One exact step, and what repeats it."""
