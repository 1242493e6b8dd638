"""The batch linter: what is wrong with a job before anything is measured."""

from rightbatch.check.findings import Finding, Findings
from rightbatch.check.linter import check

__all__ = ["Finding", "Findings", "check"]
