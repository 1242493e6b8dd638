"""The batch linter: what is wrong with a job before anything is measured."""
