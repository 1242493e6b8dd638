"""What a monitor measures, sent to whatever logger is already there.

A live run is looked for among the modules that are imported already: nothing is
imported to look. Progress is counted in examples, so that runs with other batches line
up: as the step where every metric has steps of its own (TensorBoard, MLflow), as the
metric ``examples`` where one counter of rows serves the whole run (W&B, Trackio). That
counter is left to the loop: W&B drops what comes with a step behind it, as the loop's
own loss would (1 of 5 rows was kept, wandb 0.31 [measured]).
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rightbatch.core.errors import SettingError
from rightbatch.core.text import first_line
from rightbatch.noise.guard import warn
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.training.ranks import joined

__all__ = ["live", "log"]

Log = Callable[[dict[str, float], int], object]  # (metrics, step): the one protocol

_warned = set[tuple[str, type]]()


def live() -> dict[str, Log]:
    """How to log to the runs of W&B, Trackio and MLflow that this process has begun.

    Example:
        >>> live()
        {}
    """
    logs: dict[str, Log] = {}
    if (run := getattr(sys.modules.get("wandb"), "run", None)) is not None:
        logs["wandb"] = functools.partial(_in_rows, run)
    places = getattr(sys.modules.get("trackio"), "context_vars", None)
    if places is not None and (run := places.current_run.get()) is not None:
        logs["trackio"] = functools.partial(_in_rows, run)
    mlflow: Any = sys.modules.get("mlflow")
    if getattr(mlflow, "active_run", lambda: None)() is not None:
        logs["mlflow"] = mlflow.log_metrics
    return logs


def log(
    source: NoiseMonitor | Mapping[str, float],
    *,
    examples: int | None = None,
    to: Any = None,
) -> dict[str, float]:
    """Send what a monitor measures to the loggers that are there.

    A logger that raises is told of in a warning, once, and training goes on. Of several
    ranks the first one sends.

    Args:
        source: A `NoiseMonitor`: its ``noise/...``, ``batch/size`` and, where it was
            given the optimizer, ``batch/lr``, of its first parameter group. Or plain
            numbers by name.
        examples: Examples seen; default: what the monitor has counted.
        to: A path, for one line of JSON a call; a TensorBoard ``SummaryWriter``; a run
            of W&B; or anything with ``log_metrics(metrics, step)``, as Lightning's
            loggers, or ``log(metrics, step)``, as an ``Accelerator``. Default: every
            run that is `live`.

    Returns:
        The numbers that were sent; those that are not finite are left out.

    Raises:
        SettingError: Something else is given, or nothing says how many examples.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "noise.jsonl"
        >>> log({"batch/size": 64}, examples=640, to=path)
        {'batch/size': 64.0}
        >>> path.read_text().strip()
        '{"examples": 640, "batch/size": 64.0}'
    """
    logs = live() if to is None else {type(to).__name__: _log_of(to)}
    if isinstance(source, NoiseMonitor) and examples is None:
        examples = source.counts.examples
    metrics = _numbers(source)
    if examples is None:
        raise SettingError(
            "plain numbers do not say how many examples were seen",
            fix="log(metrics, examples=step * batch_size)",
        )
    for name, send in logs.items() if not joined() or dist.get_rank() == 0 else ():
        try:
            send(metrics, examples)
        except Exception as error:  # no reason for a step to fail
            if (name, type(error)) not in _warned:
                _warned.add((name, type(error)))
                text = f"{type(error).__name__}: {first_line(error)}"
                warn(f"{name} took no metrics, training goes on: {text}")
    return metrics


def _numbers(source: Any) -> dict[str, float]:
    """What is finite, by name."""
    if isinstance(source, NoiseMonitor):
        monitor, source = source, source.log()
        if monitor.counts.batch_size:
            source["batch/size"] = monitor.counts.batch_size
        if monitor.optimizers:
            source["batch/lr"] = monitor.optimizers[0].param_groups[0]["lr"]
    try:
        numbers = {str(name): float(value) for name, value in source.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise SettingError(
            "log takes a NoiseMonitor, or numbers by name",
            seen=f"{source!r:.60}",
            fix="log(monitor), or log({'batch/size': 64}, examples=640)",
        ) from error
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _log_of(to: Any) -> Log:
    if isinstance(to, str | Path):
        return functools.partial(_append, Path(to))
    if hasattr(to, "add_scalar"):
        return functools.partial(_scalars, to)
    if hasattr(to, "define_metric"):
        return functools.partial(_in_rows, to)
    if (send := getattr(to, "log_metrics", getattr(to, "log", None))) is not None:
        return send
    raise SettingError(
        "this is no logger",
        seen=f"to={to!r:.60}",
        fix="a path, a SummaryWriter, a run, or anything with log(metrics, step)",
    )


def _append(path: Path, metrics: dict[str, float], step: int) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"examples": step, **metrics}) + "\n")


def _scalars(writer: Any, metrics: dict[str, float], step: int) -> None:
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)


def _in_rows(run: Any, metrics: dict[str, float], step: int) -> None:
    if hasattr(run, "define_metric"):  # Trackio has none: the page lets one choose
        _examples_as_axis(run)
    run.log({**metrics, "examples": step})


@functools.lru_cache(maxsize=1)  # once a run
def _examples_as_axis(run: Any) -> None:
    for space in ("noise/*", "batch/*"):  # the names that are ours
        run.define_metric(space, step_metric="examples")
