"""One claim about batch size a file, each with a number that it must give."""
