"""The batch linter: what is wrong with a job before anything is measured."""

from rightbatch.lint.findings import Finding, Findings
from rightbatch.lint.linter import check

__all__ = ["Finding", "Findings", "check"]
