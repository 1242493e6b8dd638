"""``python -m rightbatch``."""

from rightbatch.cli.main import main

main()
