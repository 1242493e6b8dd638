"""What a user trains, and how it is found."""
