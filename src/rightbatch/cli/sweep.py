"""The command ``sweep``: the empirical answer, by training again and again."""

from __future__ import annotations

import functools
import os
import shlex
from pathlib import Path

import click

from rightbatch.cli.console import (
    DECIDED,
    INTERRUPTED,
    UNDECIDED,
    announce,
    keeping,
    load_quietly,
    print_document,
)
from rightbatch.cli.options import DURATION, JOB, JSON, OUT, PATH, THREADS
from rightbatch.core.errors import SettingError
from rightbatch.job.loading import look_up

BRANCH_S = 60.0  # of the branch probe, where no budget is given [assumed]


@click.command()
@JOB
@click.option("--trials", type=click.IntRange(1), help="How many in all; 40.")
@click.option("--budget", type=DURATION, help="Seconds for measuring and trials.")
@click.option("--workers", type=click.IntRange(1), help="Processes; 1.")
@click.option("--plan", "plan_path", type=PATH, help="Tried first: a plan.json.")
@click.option("--ray", help="Workers as tasks of this Ray cluster; local: one here.")
@click.option("--resume", is_flag=True, help="Go on with the study in --out, if any.")
@click.option(
    "--branch", type=PATH, help="Instead: branches of this run, for its critical batch."
)
@THREADS
@OUT
@JSON
def sweep(
    job: str,
    trials: int | None,
    budget: float | None,
    workers: int | None,
    plan_path: Path | None,
    ray: str | None,
    resume: bool,
    branch: Path | None,
    keep_threads: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Train JOB to its target at many batches and rates."""
    given = {
        "--trials": trials,
        "--workers": workers,
        "--plan": plan_path,
        "--ray": ray,
        "--resume": resume or None,
    }
    others = [flag for flag, value in given.items() if value is not None]
    if branch is not None and others:
        raise SettingError(
            f"{others[0]} belongs to a study, not to --branch",
            fix="--branch RUN with --budget, --out, --json",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError(
            "sweep trains each run on one process",
            seen=f"{os.environ['WORLD_SIZE']} processes",
            fix="--workers 2, without torchrun",
        )
    if resume and out is None:
        raise SettingError(
            "--resume needs the folder of the study",
            seen="no --out",
            fix="--out runs/mine --resume",
        )
    if branch is not None:
        from rightbatch.cli.branch import run_branch

        left = budget or BRANCH_S
        return run_branch(job, branch, budget=left, out=out, as_json=as_json)
    spec = look_up(job)
    console = announce(spec, as_json)
    from rightbatch.core.json_io import to_plain, write_text
    from rightbatch.integrations.loading import load_job
    from rightbatch.measure.measurements import Measurements
    from rightbatch.plan.choice import choose
    from rightbatch.report.answer import files_lines
    from rightbatch.report.terminal import TerminalProgress, print_plain, wrapped
    from rightbatch.sweep.study_page import study_page
    from rightbatch.sweep.studying import study
    from rightbatch.training.plan import Plan
    from rightbatch.training.run_folder import (
        MEASUREMENTS,
        PLAN,
        STUDY,
        make_run_folder,
    )

    folder = out if resume and out else make_run_folder(out, f"sweep-{spec.stem}")
    if plan_path is not None and plan_path.is_dir():
        plan_path /= PLAN
    loaded = load_quietly(load_job, job, as_json)
    with keeping(folder, as_json):
        result = study(
            loaded,
            folder,
            trials=trials or 40,
            budget_s=budget,
            workers=workers or 1,
            plan=None if plan_path is None else Plan.load(plan_path),
            resume=resume,
            load=functools.partial(load_job, job),
            ray=ray,
            threads="present" if keep_threads else "auto",
            spec=spec.text,
            progress=TerminalProgress(console, phases=1 if resume else 4),
        )
    page = folder / "study.html"
    choice = choose(Measurements.load(folder / MEASUREMENTS))
    write_text(page, study_page(result, choice))
    if as_json:
        print_document({"folder": str(folder), "study": to_plain(result)})
    else:
        where, labels = shlex.quote(str(folder)), ["answer", *[""] * 5]
        said = [wrapped(*pair) for pair in zip(labels, result.sentences, strict=False)]
        again = f"rightbatch sweep {shlex.quote(spec.text)} --out {where} --resume"
        again += f" --trials {trials}" if trials else ""
        again += f" --workers {workers}" if workers else ""
        files = [
            ("page", f"{page}   opens offline"),
            ("data", str(folder / STUDY)),
            ("next", again if result.interrupted else f"rightbatch plan {where}"),
        ]
        print_plain(console, "\n".join([*said, "", files_lines(files)]))
    if result.interrupted:
        return INTERRUPTED
    return DECIDED if result.decided else UNDECIDED
