"""``python -m rightbatch``."""

from rightbatch.cli import main

main()
