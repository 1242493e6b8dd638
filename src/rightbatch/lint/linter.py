"""Run every rule on a job, without leaving a trace on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rightbatch.core.errors import RightbatchError, SettingError
from rightbatch.core.findings import Finding, Findings
from rightbatch.core.guards import preserved_rng, untouched
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.core.units import show_seconds
from rightbatch.data.audit.audit import audit
from rightbatch.data.audit.loader_findings import LOADER_RULES
from rightbatch.job.job import Job
from rightbatch.job.loss import Loss
from rightbatch.lint.job_rules import JOB_RULES
from rightbatch.lint.probe import PassTooLongError, Probe, Rule
from rightbatch.lint.rules import ALL_RULES, MEASURED_RULES, RULES, rule_name
from rightbatch.lint.setup import Setup
from rightbatch.lint.subject import job_measured, job_of
from rightbatch.measure.measurements import Measurements
from rightbatch.schedules.job_rate import rate_of
from rightbatch.schedules.parse import parse_schedule
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
    schedule: Schedule | str | None = None,
    scheduler: Any = None,
    averaged: Any = None,
    loader: Any = None,
    time_axis: int | None = None,
    run: str | Path | None = None,
    select: str | Iterable[str] = (),
    ignore: str | Iterable[str] = (),
    budget_s: float = math.inf,
    watch: Callable[[str], None] | None = None,
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
        micro_batch: Examples of one pass on one rank; default: the job's batch over
            all passes and ranks, as the findings say at their head. Of a loop it is
            the batch given.
        accumulation: Passes that make a step; default: as many as the job's batch
            takes. With ``micro_batch`` and ``ranks`` it says the batch that runs.
        ranks: Processes that make a step together.
        schedule: The batch along the run, where it changes; or as a word of `train`,
            such as ``"ramp:32:512:3epochs"``.
        scheduler: torch's learning-rate scheduler, stepped once for every update.
        averaged: The averaged copy of the model (EMA), updated once for every update.
        loader: The loader that feeds the loop; it is audited too (RB2xx).
        time_axis: Axis of time in the model's outputs, where nothing may look ahead.
        run: A run folder of `tune`: what was measured is not measured again. Alone,
            only rules that need no more than its measurements are run.
        select: Codes, or beginnings of codes ("RB3"), of the rules to run; all.
        ignore: Of those, the ones to leave out.
        budget_s: Seconds that passes through the model may take; rules that would take
            more are left out, and a note says so. By default every rule is run.
        watch: Called with a few words on each rule as it begins.

    Returns:
        The findings; true where nothing forbids measuring.

    Raises:
        SettingError: Neither a job nor model, loss and batch are given, or both; one of
            them is another thing; no rule has such a code; or the batch is smaller than
            the passes that make it.
        RunFolderError: ``run`` is none.

    Example:
        >>> import rightbatch as rb
        >>> bool(rb.check(rb.load_job("digits")))
        True
    """
    _one_subject(job, {"model": model, "loss": loss, "batch": batch}, run)
    codes = chosen_codes(select, ignore)
    rules = {code: rule for code, rule in RULES.items() if code in codes}
    known = None if run is None else Measurements.load(Path(run) / MEASUREMENTS)
    sample = job is None
    if job is None and loss is not None:
        job = job_of(model, loss, batch, optimizer)
    elif job is None:
        assert known is not None
        job = job_measured(known.job)
        rules = {c: r for c, r in rules.items() if c in {*JOB_RULES, *MEASURED_RULES}}
    setup = Setup(
        micro_batch=micro_batch,
        accumulation=accumulation,
        ranks=ranks,
        schedule=_read(schedule, job, sample),
        scheduler=scheduler,
        averaged=averaged,
        loader=loader,
        time_axis=time_axis,
        measurements=known,
        recipe=not sample or optimizer is not None,
        sample=loss is not None,
    )
    if not rules and loader is None:
        raise SettingError(
            "none of the rules chosen can look at this",
            seen=", ".join(codes) or "no rule is left",
            why="rules of loaders (RB2xx) need one; a run alone has measurements only",
            fix="loader=..., or other rules",
        )
    split = setup.split(job)
    held = untouched(job.model, []) if isinstance(job.model, nn.Module) else None
    with held or nullcontext():
        findings = run_rules(Probe(job, budget_s, setup=setup), rules, watch)
    if micro_batch is None and split.accumulation * split.ranks > 1:
        findings = replace(findings, split=str(split))
    if loader is None:
        return findings
    loader_codes = [code for code in LOADER_RULES if code in codes]
    return replace(
        findings,
        items=(*findings.items, *_audited(loader, loader_codes)),
        rules=findings.rules + len(loader_codes),
    )


def _read(schedule: Any, job: Job, sample: bool) -> Any:
    """A schedule, read where it is given as a word."""
    if not isinstance(schedule, str):
        return schedule
    if sample and "epoch" in schedule:
        raise SettingError(
            "a loop's batch does not say how long an epoch is",
            seen=f"schedule={schedule!r}",
            fix="a schedule in examples: ramp:32:512:30k",
        )
    sizes = {"batch": job.batch_size, "length": job.length}
    return parse_schedule(schedule, **sizes, rate=rate_of(job))


def _one_subject(job: Any, parts: Mapping[str, Any], run: Any) -> None:
    """Whether a job, or a model with its loss and a batch, or else a run is given."""
    given = [name for name, value in parts.items() if value is not None]
    alone = run is not None and job is None and not given
    if not alone and (job is None) == (len(given) < len(parts)):
        raise SettingError(
            "check takes a job, or a model with its loss and a batch",
            seen=", ".join(["job"] * (job is not None) + given) or "nothing",
            fix="rb.check(job), or rb.check(model=model, loss=loss, batch=batch)",
        )
    if job is not None and (given or not isinstance(job, Job)):
        raise SettingError(
            "the first argument of check is a rightbatch.Job, and takes no other parts",
            seen=", ".join([type(job).__name__, *given]),
            fix="rb.check(job), or rb.check(model=model, loss=loss, batch=batch)",
        )


def _audited(loader: Any, codes: list[str]) -> list[Finding]:
    """What an audit finds; a note where the loader has nothing to look at."""
    if not codes:
        return []
    try:
        return [f for f in audit(loader).findings if f.code in codes]
    except SettingError as error:
        return [
            Finding(
                code=codes[0],
                severity="note",
                what=f"the loader was not audited: {error.what}",
                seen=error.seen,
                fix=error.fix,
            )
        ]


def chosen_codes(
    select: str | Iterable[str] = (), ignore: str | Iterable[str] = ()
) -> list[str]:
    """The codes that begin with one selected and with none ignored.

    Args:
        select: Codes, or beginnings of codes, one or several in a text; all.
        ignore: Of those, the ones to leave out.

    Raises:
        SettingError: No rule's code begins so.

    Example:
        >>> chosen_codes("RB20", ignore=["rb203,RB206"])
        ['RB201', 'RB202', 'RB204', 'RB205']
    """
    wanted, left = _beginnings(select) or ("RB",), _beginnings(ignore)
    for prefix in (*wanted, *left):
        if not any(code.startswith(prefix) for code in ALL_RULES):
            raise SettingError(
                f"there is no rule {prefix}",
                fix="rightbatch check --list-rules shows them all",
            )
    return [
        code
        for code in ALL_RULES
        if code.startswith(wanted) and not code.startswith(left or ("-",))
    ]


def _beginnings(given: str | Iterable[str]) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    parts = (code.strip().upper() for text in texts for code in text.split(","))
    return tuple(code for code in parts if code)


def run_rules(
    probe: Probe,
    rules: Mapping[str, Rule] = JOB_RULES,
    watch: Callable[[str], None] | None = None,
) -> Findings:
    """Rules on a probe of one's own, which knows afterwards what passes cost.

    Args:
        probe: The job.
        rules: By code; those of the job itself are what `tune` runs.
        watch: Called with a few words on each rule as it begins.
    """
    known = probe.setup.measurements
    findings = [] if known is None else [f for f in known.findings if f.code in rules]
    with preserved_rng():
        for count, (code, rule) in enumerate(rules.items(), start=1):
            if known is not None and code in JOB_RULES:
                continue
            if watch is not None:
                watch(f"{code} {rule_name(code)}, {count} of {len(rules)}")
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
            what=f"{rule_name(code)} was not checked: one pass takes "
            f"{show_seconds(error.seconds)}",
            fix="a larger --budget, or `rightbatch check` without one",
        )
    except RightbatchError as error:
        return Finding.of(code, error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if code not in JOB_RULES:
            what = f"{rule_name(code)} was not checked: it does not fit in memory"
            return Finding(code=code, severity="note", what=what)
        return Finding(
            code=code,
            severity="error",
            what=f"today's batch of {probe.job.batch_size} does not fit in memory",
            seen=first_line(error, 70),
            fix="a smaller batch_size, with the rate chosen for it",
        )
