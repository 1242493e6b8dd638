"""A run that begins where another one stands: weights, optimizer, rate, position."""

from __future__ import annotations

from typing import Any

from rightbatch.core.errors import SettingError
from rightbatch.core.findings import Finding
from rightbatch.core.guards import set_buffers
from rightbatch.core.user_code import user_code
from rightbatch.training.any_checkpoint import Start
from rightbatch.training.fitting_state import (
    fitting_model,
    fitting_optimizer,
    groups_of,
    numbers,
)
from rightbatch.training.run_state import RunState

CODE = "RB120"


def begin_from(run: RunState, start: Start) -> tuple[Finding, ...]:
    """Put a start into a fresh run, on every rank alike.

    The learning rate, and whatever else the optimizer's param groups hold, is then the
    checkpoint's and not the job's: a scheduler has brought it there, and noise and race
    begin where the run really is. It is today's rate, from which the plan's follows.
    Where it differs from the job's a finding says so.

    Args:
        run: Fresh, of the job.
        start: Of the same model; its optimizer, if there is one, with as many
            parameters in the same groups.

    Returns:
        Where it begins, and what differs from the job or is missing.

    Raises:
        SettingError: It is of another model, optimizer or batch, or at the end of its
            run; the run is unchanged.

    Example:
        >>> from pathlib import Path
        >>> import rightbatch as rb
        >>> run = RunState.start(rb.load_job("digits"))
        >>> weights = run.network.state_dict()
        >>> start = Start(path=Path("a.pt"), model=weights, steps=100)
        >>> print(begin_from(run, start)[0].what)
        the run begins from a.pt: step 100, 1,600 examples
    """
    batch = run.job.batch_size
    if start.batch_size not in (None, batch):
        raise SettingError(
            f"{start.path} was trained at another batch than the job's",
            seen=f"B = {start.batch_size} there, batch_size={batch} in the job",
            why="its learning rate belongs to its batch",
            fix=f"Job(batch_size={start.batch_size}, ...)",
        )
    seen, length = _examples(start, run), run.job.run_examples
    if length is not None and seen >= length:
        raise SettingError(
            f"the run in {start.path} has ended",
            seen=f"{seen:,} examples there, {length:,.0f} in the job's run",
            why="what is decided is for the rest of it",
            fix="an earlier checkpoint, or a Job with more examples= or epochs=",
        )
    model = fitting_model(run.network, start.model, start.path)
    optimizer = None
    if start.optimizer is not None:
        optimizer = fitting_optimizer(
            run.optimizer, run.network, start.optimizer, start.path
        )
        if not numbers(groups_of(optimizer)[0]).get("lr"):
            raise SettingError(
                f"the learning rate in {start.path} is zero",
                why="its schedule has ended, and nothing can be learned from here on",
                fix="an earlier checkpoint, or a file of the model alone",
            )
    with user_code("model.load_state_dict"):
        run.network.load_state_dict(model)
    set_buffers(run.network, start.buffers)
    before = [numbers(group) for group in run.optimizer.param_groups]
    if optimizer is not None:
        with user_code("optimizer.load_state_dict"):
            run.optimizer.load_state_dict(optimizer)
    run.examples = seen
    run.steps = run.examples // batch if start.steps is None else start.steps
    return _findings(start, run, before)


def _examples(start: Start, run: RunState) -> int:
    """Examples seen before, as far as the checkpoint tells."""
    if start.examples is not None:
        return start.examples
    if start.steps is not None:
        return start.steps * run.job.batch_size
    return round((start.epochs or 0) * run.job.length)


def _findings(
    start: Start, run: RunState, before: list[dict[str, Any]]
) -> tuple[Finding, ...]:
    name, told = start.path.name, []
    known = (start.steps, start.examples, start.epochs) != (None, None, None)
    where = f"step {run.steps:,}, {run.examples:,} examples"
    told.append(
        (
            f"the run begins from {name}: "
            + (where if known else "how far it had come is not known"),
            "what is decided is for the rest of the run",
        )
    )
    if start.optimizer is None:
        told.append(
            (
                f"{name} holds no optimizer's state: its moments start anew",
                "so they do in every run of the race; the rate is the job's",
            )
        )
    changes = _changes(run, before)
    if changes:
        told.append(
            (
                f"today's {changes}: as {name} has it",
                "a run is measured where it is, and its scheduler may have moved them "
                "since it began; a file of the model alone leaves them the job's",
            )
        )
    return tuple(
        Finding(code=CODE, severity="note", what=what, why=why) for what, why in told
    )


def _changes(run: RunState, before: list[dict[str, Any]]) -> str:
    """What differs from the job in the first param group in which anything does."""
    for old, group in zip(before, run.optimizer.param_groups, strict=True):
        new = numbers(group)
        changed = [n for n in old if n in new and new[n] != old[n]]
        if changed:
            return ", ".join(
                f"{n} is {_show(new[n])}, not {_show(old[n])}" for n in changed
            )
    return ""


def _show(number: float | tuple[float, ...]) -> str:
    if isinstance(number, tuple):
        return f"({', '.join(f'{n:g}' for n in number)})"
    return f"{number:g}"
