"""``python -m rightbatch``."""

from rightbatch.cli.main import main

if __name__ == "__main__":  # workers that are not forked import this file too
    main()
