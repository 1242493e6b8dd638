"""The command ``train``: on one process, or on each of those that torchrun started."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rightbatch.cli.compare import comparing
from rightbatch.cli.console import (
    DECIDED,
    INTERRUPTED,
    UNDECIDED,
    announce,
    end_together,
    first_speaks,
    keep_origin,
    keeping,
    load_quietly,
    print_document,
)
from rightbatch.cli.options import DURATION, JOB, JSON, OUT, PATH, THREADS
from rightbatch.core.errors import SettingError
from rightbatch.job.loading import look_up
from rightbatch.training.run_folder import PLAN, RUN, make_run_folder

if TYPE_CHECKING:
    from rightbatch.job.job import Job
    from rightbatch.training.plan import Plan


@click.command()
@JOB
@click.option("--plan", "plan_path", type=PATH, help="A plan.json, or its run folder.")
@click.option("--batch-size", type=int, help="Instead of a plan; the rate follows.")
@click.option(
    "--schedule",
    help="A batch that changes: ramp:32:512:3epochs, noise:0.5, smith:512, ….",
)
@click.option("--rate", help="Learning rate: warmup:2k+cosine:9epochs[:0.01], ….")
@click.option("--rule", help="How the rate follows the batch: linear, sqrt, ….")
@click.option("--noise-scale", type=float, help="For the noise-aware rules.")
@click.option("--exponent", type=float, help="For --rule exponent.")
@click.option(
    "--epochs", type=float, help="At most so many passes; a target met ends it."
)
@click.option("--examples", type=int, help="The same, in examples.")
@click.option("--micro-batch", type=int, help="Most examples in memory at once.")
@click.option("--largest", type=int, help="Never a larger batch than this.")
@click.option("--clip-norm", type=float, help="Largest norm of the gradient.")
@click.option(
    "--nonfinite",
    type=click.Choice(["stop", "skip"]),
    help="What a NaN or infinite loss does.",
)
@click.option(
    "--shard", is_flag=True, default=None, help="Shard the model over ranks (FSDP2)."
)
@click.option("--workers", "num_workers", type=int, help="Processes that read data.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, if any.")
@click.option(
    "--accept-changes", is_flag=True, help="Go on although the job has changed since."
)
@click.option(
    "--to-target", is_flag=True, help="Exit status 3 if the target is not met."
)
@click.option(
    "--save-every", "save_every_s", type=DURATION, help="Between checkpoints; 5 min."
)
@click.option(
    "--keep",
    type=click.Choice(["last", "best"]),
    help="Which model weights.pt holds; best: by evaluate.",
)
@click.option(
    "--evaluate-share",
    type=float,
    help="Most of the training time that evaluations may take; 0.2.",
)
@click.option(
    "--ledger", is_flag=True, default=None, help="Prove every example seen once."
)
@THREADS
@OUT
@JSON
@comparing
def train(
    job: str,
    plan_path: Path | None,
    schedule: str | None,
    keep_threads: bool,
    resume: bool,
    to_target: bool,
    out: Path | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Train JOB by a plan, a schedule or a batch size.

    To its target, or for as many examples as are asked for: either is exit status 0.

    On several processes: torchrun --nproc-per-node N -m rightbatch train JOB …
    """
    if resume and out is None:
        raise SettingError(
            "--resume needs the folder of the run",
            seen="no --out",
            fix="--out runs/mine --resume",
        )
    if schedule is not None and settings["batch_size"] is not None:
        raise SettingError(
            "give --schedule or --batch-size: each says the batch",
            seen=f"--schedule {schedule} --batch-size {settings['batch_size']}",
            fix="one of the two",
        )
    first = first_speaks()
    if plan_path is not None and plan_path.is_dir():
        plan_path /= PLAN
    spec = look_up(job)
    console = announce(spec, as_json and first)
    import torch

    from rightbatch.integrations.loading import load_job
    from rightbatch.measure.threads import pick_threads
    from rightbatch.report.terminal import print_plain
    from rightbatch.report.training import run_lines, training_line
    from rightbatch.training.plan import Plan
    from rightbatch.training.ranks import join, share_first
    from rightbatch.training.run_state import RunState
    from rightbatch.training.train import train as run_training

    plan = Plan.load(plan_path) if plan_path is not None else None
    loaded = load_quietly(load_job, job, as_json)
    if to_target and loaded.target is None:
        raise SettingError(
            "--to-target needs a job with a target",
            seen="target=None",
            fix="Job(..., evaluate=..., target=0.1); or leave --to-target out",
        )
    joined = join()
    if not keep_threads and not joined:
        planned = plan.threads if plan is not None else None
        if planned is None:
            trial = RunState.start(loaded, alone=True)
            planned, _ = pick_threads(trial)
            trial.close()
        torch.set_num_threads(planned)
    folder = out or share_first(
        lambda: make_run_folder(None, f"train-{spec.stem}"), first
    )
    with (
        keeping(folder, as_json),
        training_line(console, loaded, quiet=not first) as show,
    ):
        print_plain(console, _until(loaded, plan, folder if resume else None, settings))
        run = run_training(
            loaded,
            plan,
            schedule=schedule,
            out=folder,
            resume="auto" if resume else False,
            watch=lambda row: _shown(show, row),
            **{k: v for k, v in settings.items() if v is not None},
        )
    if first:
        if plan_path is not None and not resume:
            keep_origin(plan_path.parent, folder)
        if as_json:
            print_document(_document(run, folder))
        else:
            print_plain(
                console, run_lines(run, loaded, folder, best=settings["keep"] == "best")
            )
            if run.interrupted:
                again = f"rightbatch train {shlex.quote(spec.text)} --resume"
                print_plain(
                    console, f" next   {again} --out {shlex.quote(str(folder))}"
                )
    missed = to_target and not run.reached
    status = UNDECIDED if missed else DECIDED
    status = INTERRUPTED if run.interrupted else status
    return end_together(status, joined)


def _until(
    job: Job, plan: Plan | None, going_on: Path | None, settings: dict[str, Any]
) -> str:
    """One line: where the run will end, and why there."""
    from rightbatch.job.job import run_length
    from rightbatch.report.terminal import wrapped
    from rightbatch.schedules.job_rate import rate_of
    from rightbatch.schedules.parse import parse_rate
    from rightbatch.training.requested import run_end
    from rightbatch.training.run_files import has_checkpoint
    from rightbatch.training.settings import Settings

    asked = run_length(job.length, settings["examples"], settings["epochs"])
    if asked is None and going_on is not None and has_checkpoint(going_on, "auto"):
        end, why = Settings.load(going_on / RUN).end, "as it was begun"
    else:
        rate = None
        if settings["rate"] is not None:
            rate = parse_rate(settings["rate"], job.length)
        elif job.run_examples is None:
            rate = rate_of(job)
        end, why = run_end(job, plan, rate=rate, asked=asked)
    target = "" if job.target is None else f"target {job.target:.4g}, or "
    return wrapped("until", f"{target}{end / job.length:,.4g} epochs: {why}")


def _shown(show: Callable[[Any], None], row: Any) -> None:
    """A row at the terminal; a pipe that was closed, or a full disk, ends no run."""
    with contextlib.suppress(OSError):
        show(row)


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
