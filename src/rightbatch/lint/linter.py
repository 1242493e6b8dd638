"""Run every rule on a job, without leaving a trace on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rightbatch.core.errors import RightbatchError, SettingError
from rightbatch.core.findings import Finding, Findings
from rightbatch.core.guards import preserved_rng
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.core.units import show_seconds
from rightbatch.job.job import Job
from rightbatch.job.loss import Loss
from rightbatch.lint.job_rules import JOB_RULES
from rightbatch.lint.probe import PassTooLongError, Probe, Rule
from rightbatch.lint.rules import RULES, meaning
from rightbatch.lint.setup import Setup
from rightbatch.lint.subject import job_of
from rightbatch.measure.measurements import Measurements
from rightbatch.schedules.schedule import Schedule
from rightbatch.training.run_folder import MEASUREMENTS


def check(
    job: Job | None = None,
    *,
    model: Any = None,
    loss: Loss | None = None,
    batch: Any = None,
    optimizer: Any = None,
    micro_batch: int | None = None,
    accumulation: int | None = None,
    ranks: int = 1,
    schedule: Schedule | None = None,
    scheduler: Any = None,
    averaged: Any = None,
    loader: Any = None,
    time_axis: int | None = None,
    run: str | Path | None = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    budget_s: float = math.inf,
) -> Findings:
    """Check a job, or a model with its loss and one batch, for what is wrong with it.

    Rules are run in order; an error among those of the job itself (RB1xx) ends the run,
    since later rules rely on what it found broken. Model, optimizer and random states
    are left as they were. What the rules find is in ``docs/checks.md``.

    Args:
        job: What to check; or leave it out and give the next three.
        model: A module, which is left as it is.
        loss: As in `Job`: ``(model, batch) ->`` a mean, or ``(sum, count)``.
        batch: One batch as the loop sees it, examples along the first axis.
        optimizer: Of the loop, or as in `Job`; without it rules about the recipe are
            silent.
        micro_batch: Examples of one pass on one rank; default: what the job's batch
            takes.
        accumulation: Passes that make a step; default: as many as the job's batch
            takes. With ``micro_batch`` and ``ranks`` it says the batch that runs.
        ranks: Processes that make a step together.
        schedule: The batch along the run, where it changes.
        scheduler: torch's learning-rate scheduler, stepped once for every update.
        averaged: The averaged copy of the model (EMA), updated once for every update.
        loader: The loader that feeds the loop; it is audited too (RB2xx).
        time_axis: Axis of time in the model's outputs, where nothing may look ahead.
        run: A run folder of `tune`: what was measured is not measured again.
        select: Codes, or beginnings of codes ("RB3"), of the rules to run; all.
        ignore: Of those, the ones to leave out.
        budget_s: Seconds that passes through the model may take; rules that would take
            more are left out, and a note says so. By default every rule is run.

    Returns:
        The findings; true where nothing forbids measuring.

    Raises:
        SettingError: Neither a job nor model, loss and batch are given, or both; no
            rule has such a code; or the batch is smaller than the passes that make it.
        RunFolderError: ``run`` is none.

    Example:
        >>> import rightbatch as rb
        >>> bool(rb.check(rb.load_job("digits")))
        True
    """
    given = {"model": model, "loss": loss, "batch": batch}
    if (job is None) == any(value is None for value in given.values()):
        raise SettingError(
            "check takes a job, or a model with its loss and a batch",
            seen=", ".join(["job"] * (job is not None) + [*_given(given)]) or "nothing",
            fix="rb.check(job), or rb.check(model=model, loss=loss, batch=batch)",
        )
    setup = Setup(
        micro_batch=micro_batch,
        accumulation=accumulation,
        ranks=ranks,
        schedule=schedule,
        scheduler=scheduler,
        averaged=averaged,
        loader=loader,
        time_axis=time_axis,
        measurements=None if run is None else _measured(Path(run)),
        recipe=job is not None or optimizer is not None,
        sample=job is None,
    )
    if job is None:
        assert loss is not None
        job = job_of(model, loss, batch, optimizer)
    setup.split(job)  # refuses what cannot be split
    return run_rules(
        Probe(job, budget_s, setup=setup), chosen_rules(RULES, select, ignore)
    )


def _given(values: Mapping[str, Any]) -> list[str]:
    return [name for name, value in values.items() if value is not None]


def _measured(folder: Path) -> Measurements:
    return Measurements.load(folder / MEASUREMENTS)


def chosen_rules(
    rules: Mapping[str, Rule], select: Iterable[str], ignore: Iterable[str]
) -> dict[str, Rule]:
    """The rules whose code begins with one selected and with none ignored.

    Raises:
        SettingError: No rule's code begins so.
    """
    wanted, left = tuple(select) or ("RB",), tuple(ignore)
    for prefix in (*wanted, *left):
        if not any(code.startswith(prefix) for code in rules):
            raise SettingError(
                f"there is no rule {prefix}",
                fix="rightbatch check --list-rules shows them all",
            )
    return {
        code: rule
        for code, rule in rules.items()
        if code.startswith(wanted) and not code.startswith(left or ("-",))
    }


def run_rules(probe: Probe, rules: Mapping[str, Rule] = JOB_RULES) -> Findings:
    """Rules on a probe of one's own, which knows afterwards what passes cost.

    Args:
        probe: The job.
        rules: By code; those of the job itself are what `tune` runs.
    """
    known = probe.setup.measurements
    findings = [] if known is None else [f for f in known.findings if f.code in rules]
    with preserved_rng():
        for count, (code, rule) in enumerate(rules.items(), start=1):
            if known is not None and code in JOB_RULES:
                continue
            finding = _found(code, rule, probe)
            if finding is None:
                continue
            findings.append(finding)
            if finding.severity == "error" and code in JOB_RULES:
                return Findings(items=tuple(findings), rules=count)
    return Findings(items=tuple(findings), rules=len(rules), coupled=probe.coupled)


def _found(code: str, rule: Rule, probe: Probe) -> Finding | None:
    """What a rule says; what it raised, as a finding."""
    try:
        return rule(probe)
    except PassTooLongError as error:
        return Finding(
            code=code,
            severity="note",
            what=f"not checked, one pass takes {show_seconds(error.seconds)}: "
            f"{meaning(code)}",
            fix="a larger --budget, or `rightbatch check`, which takes its time",
        )
    except RightbatchError as error:
        return Finding.of(code, error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Finding(
            code=code,
            severity="error",
            what=f"today's batch of {probe.job.batch_size} does not fit in memory",
            seen=first_line(error, 70),
            fix="a smaller batch_size, with the rate chosen for it",
        )
