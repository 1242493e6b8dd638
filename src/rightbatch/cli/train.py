"""The command ``train``: on one process, or on each of those that torchrun started."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rightbatch.cli.console import (
    DECIDED,
    INTERRUPTED,
    UNDECIDED,
    begin,
    drop_if_empty,
    keep_origin,
    print_document,
    quiet_load,
)
from rightbatch.core.errors import RightbatchError, SettingError


def train_command(
    job: str,
    plan_path: Path | None,
    *,
    schedule: str | None,
    rate: str | None,
    keep_threads: bool,
    resume: bool,
    out: Path | None,
    as_json: bool,
    settings: dict[str, Any],
    **numbers: Any,
) -> int:
    """Train as `rightbatch.train` does, and tell how it went; returns the status.

    Only the first rank speaks. Errors of the others are told by it as well, unless it
    is one of theirs alone.
    """
    if resume and out is None:
        raise SettingError(
            "--resume needs the folder of the run",
            seen="no --out",
            fix="--out runs/mine --resume",
        )
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # ruff: ignore[open-file-with-context-handler]
    if plan_path is not None and plan_path.is_dir():
        plan_path /= "plan.json"
    console, spec, _ = begin(job, out, as_json and rank == 0, make=False)
    import torch

    from rightbatch.measure.threads import pick_threads
    from rightbatch.report.terminal import TrainingLine, print_plain, run_lines
    from rightbatch.schedules.parse import parse_rate, parse_schedule
    from rightbatch.training.plan import Plan
    from rightbatch.training.ranks import join, leave, share_first
    from rightbatch.training.run_folder import make_run_folder
    from rightbatch.training.train import train

    plan = Plan.load(plan_path) if plan_path is not None else None
    loaded = quiet_load(job, as_json)
    joined = join()
    if not keep_threads and not joined:
        planned = plan.threads if plan is not None else None
        torch.set_num_threads(planned or pick_threads(loaded)[0])
    decay = None if rate is None else parse_rate(rate, loaded.length)
    wanted = None
    if schedule is not None and numbers["batch_size"] is not None:
        raise SettingError(
            "give --schedule or --batch-size: one says the batch",
            seen=f"--schedule {schedule} --batch-size {numbers['batch_size']}",
        )
    if schedule is not None:
        batch = plan.batch_size if plan else loaded.batch_size
        wanted = parse_schedule(
            schedule,
            batch=batch,
            length=loaded.length,
            rate=decay,
            half_batch=plan.half_batch if plan is not None else None,
        )
        # Some forms take the decay up.
        taken = hasattr(wanted, "rate")
        decay = None if taken else decay
    folder = out or share_first(
        lambda: make_run_folder(None, f"train-{spec.stem}"), rank
    )
    try:
        with TrainingLine(console, loaded, quiet=rank > 0) as line:
            run = train(
                loaded,
                plan,
                schedule=wanted,
                rate=decay,
                out=folder,
                resume="auto" if resume else False,
                watch=line.show,
                **numbers,
                **settings,
            )
    except RightbatchError:
        drop_if_empty(folder)
        raise
    if rank == 0:
        if plan_path is not None and not resume:
            keep_origin(plan_path.parent, folder)
        if as_json:
            print_document(_document(run, folder))
        else:
            print_plain(console, run_lines(run, loaded, folder))
    status = UNDECIDED if run.reached is False else DECIDED
    status = INTERRUPTED if run.interrupted else status
    if joined:
        leave(status)
    return status


def _document(run: Any, folder: Path) -> dict[str, Any]:
    from rightbatch.core.json_io import to_plain

    return {
        "reached": run.reached,
        "batch_size": run.batch_size,
        "interrupted": run.interrupted,
        "resumed": run.resumed,
        "last": to_plain(run.last),
        "scaling": to_plain(run.scaling),
        "events": list(run.events),
        "folder": str(folder),
    }
