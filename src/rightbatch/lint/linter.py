"""Run every rule on a job, without leaving a trace on it."""

from __future__ import annotations

from rightbatch.core.errors import RightbatchError
from rightbatch.core.findings import Finding, Findings
from rightbatch.core.guards import preserved_rng
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.job.job import Job
from rightbatch.lint.rules import RULES, Probe


def check(job: Job) -> Findings:
    """Check a job: what would make its measurements wrong, or impossible.

    Rules are run in order; the first error ends the run, since later rules rely on
    what it found broken. Model, optimizer and random states are left as they were.

    Args:
        job: What to check.

    Returns:
        The findings; true where nothing forbids measuring.

    Example:
        >>> import rightbatch as rb
        >>> bool(rb.check(rb.load_job("digits")))
        True
    """
    findings: list[Finding] = []
    with preserved_rng():
        probe = Probe(job)
        for count, (code, rule) in enumerate(RULES.items(), start=1):
            try:
                finding = rule(probe)
            except RightbatchError as error:
                finding = Finding.of(code, error)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                finding = Finding(
                    code=code,
                    severity="error",
                    what=f"today's batch of {job.batch_size} does not fit in memory",
                    seen=first_line(error, 70),
                    fix="a smaller batch_size, with the rate chosen for it",
                )
            if finding is not None:
                findings.append(finding)
                if finding.severity == "error":
                    return Findings(items=tuple(findings), rules=count)
    coupled = probe.coupling.kind
    return Findings(items=tuple(findings), rules=len(RULES), coupled=coupled)
