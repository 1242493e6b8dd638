"""Run every rule on a job, without leaving a trace on it."""

from __future__ import annotations

import math

from rightbatch.core.errors import RightbatchError
from rightbatch.core.findings import Finding, Findings
from rightbatch.core.guards import preserved_rng
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.core.units import show_seconds
from rightbatch.job.job import Job
from rightbatch.lint.rules import RULES, PassTooLongError, Probe, Rule


def check(job: Job, *, budget_s: float = math.inf) -> Findings:
    """Check a job: what would make its measurements wrong, or impossible.

    Rules are run in order; the first error ends the run, since later rules rely on
    what it found broken. Model, optimizer and random states are left as they were.

    Args:
        job: What to check.
        budget_s: Seconds that passes through the model may take; rules that would take
            more are left out, and a note says so. By default every rule is run.

    Returns:
        The findings; true where nothing forbids measuring.

    Example:
        >>> import rightbatch as rb
        >>> bool(rb.check(rb.load_job("digits")))
        True
    """
    return run_rules(Probe(job, budget_s))


def run_rules(probe: Probe) -> Findings:
    """`check` with a probe of one's own, which knows afterwards what passes cost."""
    findings: list[Finding] = []
    with preserved_rng():
        for count, (code, rule) in enumerate(RULES.items(), start=1):
            try:
                finding = rule(probe)
            except PassTooLongError as error:
                finding = _left_out(code, rule, error)
            except RightbatchError as error:
                finding = Finding.of(code, error)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                finding = Finding(
                    code=code,
                    severity="error",
                    what=f"today's batch of {probe.job.batch_size} does not fit in "
                    "memory",
                    seen=first_line(error, 70),
                    fix="a smaller batch_size, with the rate chosen for it",
                )
            if finding is not None:
                findings.append(finding)
                if finding.severity == "error":
                    return Findings(items=tuple(findings), rules=count)
    coupled = probe.coupling.kind
    return Findings(items=tuple(findings), rules=len(RULES), coupled=coupled)


def _left_out(code: str, rule: Rule, error: PassTooLongError) -> Finding:
    """The note that a rule was not run, and what it would have checked."""
    meaning = (rule.__doc__ or "").splitlines()[0]
    return Finding(
        code=code,
        severity="note",
        what=f"not checked, one pass takes {show_seconds(error.seconds)}: {meaning}",
        fix="a larger --budget, or `rightbatch check`, which takes its time",
    )
