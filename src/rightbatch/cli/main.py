"""The command line: arguments are understood before torch is imported."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from rightbatch.cli.console import (
    DECIDED,
    FAILED,
    INTERRUPTED,
    UNDECIDED,
    USAGE,
    begin,
    command_line,
    drop_if_empty,
    finish,
    folded,
    interrupted,
    make_console,
    note_interrupts,
    print_document,
    quiet_load,
    quiet_named,
    report_bug,
)
from rightbatch.cli.options import (
    BANDWIDTH,
    BUDGET,
    DURATION,
    JSON,
    LATENCY,
    MEMORY,
    OUT,
    THREADS,
    Commands,
    deciding,
)
from rightbatch.core.errors import (
    RightbatchError,
    SettingError,
    UnidentifiedError,
)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="JOB is file.py:name, package.module:name, or a built-in job: digits, "
    "stdlib_gpt.  Exit status: 0 decided, 1 error, 2 usage, 3 undecided.",
)
@click.version_option(package_name="rightbatch", message="rightbatch %(version)s")
def cli() -> None:
    """Find, explain and run the right batch size for a PyTorch training job."""


@cli.command()
@click.argument("job")
@BUDGET
@deciding
@click.option("--race/--no-race", "with_race", default=True, help="Race the plan.")
@THREADS
@OUT
@JSON
def tune(
    job: str,
    budget: float,
    objective: str,
    deadline: float | None,
    memory: float | None,
    watts: float | None,
    price: float | None,
    with_race: bool,
    keep_threads: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Measure JOB here, decide its batch size and rate, race it, and explain."""
    from rightbatch.plan.objectives import objective_named

    goal = objective_named(objective, watts=watts, price=price)
    console, spec, folder = begin(job, out, as_json)
    try:
        from rightbatch.plan.decide import Decision
        from rightbatch.report.terminal import TerminalWatcher
        from rightbatch.training.run_folder import MEASUREMENTS
        from rightbatch.tuning.tune import tune as run_tune
    except KeyboardInterrupt:  # while torch was being imported
        drop_if_empty(folder)
        raise

    watcher = TerminalWatcher(console, phases=4 if with_race else 3)
    path = folder / MEASUREMENTS
    try:
        tuning = run_tune(
            quiet_load(job, as_json),
            goal,
            budget_s=budget,
            deadline_s=deadline,
            memory_bytes=memory,
            with_race=with_race,
            spec=spec.text,
            command=command_line(),
            measurements_path=path,
            watcher=watcher,
            threads="present" if keep_threads else "auto",
        )
        decision = Decision(plan=tuning.plan, choice=tuning.choice)
        return finish(console, folder, tuning.measurements, decision, as_json)
    except KeyboardInterrupt:
        watcher.close()
        return interrupted(console, path)
    except RightbatchError:
        watcher.close()
        drop_if_empty(folder)
        raise


@cli.command()
@click.argument("job")
@BUDGET
@click.option("--memory", is_flag=True, help="Only memory: what is the largest batch?")
@click.option("--limit", type=MEMORY, help="Most memory a step may take.")
@click.option("--accumulation", type=int, help="Pieces a step is made of.")
@click.option("--margin", type=float, help="Share kept for longer examples: 0.1.")
@click.option("--device", help="Predict for a device that is not here: cuda.")
@click.option("--ranks", type=int, help="Predict for one of so many processes.")
@click.option("--shard", is_flag=True, help="Sharded over them (FSDP2), not copied.")
@click.option("--no-verify", is_flag=True, help="Make no real steps.")
@click.option("--patience", type=DURATION, help="Longest time for a real step: 60.")
@THREADS
@OUT
@JSON
def measure(
    job: str,
    budget: float,
    memory: bool,
    keep_threads: bool,
    out: Path | None,
    as_json: bool,
    limit: float | None,
    accumulation: int | None,
    margin: float | None,
    device: str | None,
    ranks: int | None,
    shard: bool,
    no_verify: bool,
    patience: float | None,
) -> int:
    """Measure JOB's step time, memory and gradient noise; decide nothing.

    With --memory: trace one step, and find the largest batch that fits.
    """
    if memory:
        context = click.get_current_context()
        told = click.core.ParameterSource.COMMANDLINE
        if keep_threads or context.get_parameter_source("budget") is told:
            raise SettingError(
                "--budget and --keep-threads have no effect with --memory",
                why="it makes a few real steps, in one thread",
                fix="leave them out; --patience bounds a step",
            )
        from rightbatch.cli.memory import memory_command

        return memory_command(
            job,
            limit=limit,
            accumulation=1 if accumulation is None else accumulation,
            margin=margin or 0.0,
            device=device,
            ranks=1 if ranks is None else ranks,
            shard=shard,
            patience_s=60.0 if patience is None else patience,
            verify=not no_verify,
            out=out,
            as_json=as_json,
        )
    flags = (no_verify or None, shard or None)
    _only_with_memory(limit, accumulation, margin, device, ranks, patience, *flags)
    console, spec, folder = begin(job, out, as_json)
    from rightbatch.core.json_io import to_plain
    from rightbatch.report.terminal import (
        TerminalWatcher,
        files_lines,
        findings_lines,
        job_line,
        print_plain,
    )
    from rightbatch.training.run_folder import MEASUREMENTS
    from rightbatch.tuning.tune import measure_job

    watcher = TerminalWatcher(console, phases=3)
    path = folder / MEASUREMENTS
    try:
        recorder, _ = measure_job(
            quiet_load(job, as_json),
            budget_s=budget,
            spec=spec.text,
            command=command_line(),
            path=path,
            watcher=watcher,
            threads="present" if keep_threads else "auto",
        )
    except KeyboardInterrupt:
        watcher.close()
        return interrupted(console, path)
    except RightbatchError:
        watcher.close()
        drop_if_empty(folder)
        raise
    if as_json:
        print_document(to_plain(recorder.found))
        return DECIDED
    print_plain(console, job_line(recorder.found))
    if recorder.found.findings:
        print_plain(console, findings_lines(recorder.found))
    next_one = f"rightbatch plan {shlex.quote(str(path))}"
    print_plain(console, files_lines([("saved", str(path)), ("next", next_one)]))
    return DECIDED


def _only_with_memory(*options: object) -> None:
    if any(option is not None for option in options):
        raise SettingError(
            "these options have an effect only with --memory",
            seen="--limit, --accumulation, --margin, --device, --ranks, --shard, "
            "--no-verify or --patience",
            fix="rightbatch measure JOB --memory --limit 8GiB",
        )


@cli.command()
@click.argument("measurements", type=click.Path(path_type=Path))
@deciding
@OUT
@JSON
def plan(
    measurements: Path,
    objective: str,
    deadline: float | None,
    memory: float | None,
    watts: float | None,
    price: float | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Decide again from MEASUREMENTS (a file or a run folder); measure nothing."""
    from rightbatch.measure.record import Measurements
    from rightbatch.plan.decide import decide
    from rightbatch.plan.objectives import objective_named
    from rightbatch.training.run_folder import MEASUREMENTS as NAME
    from rightbatch.training.run_folder import make_run_folder

    goal = objective_named(objective, watts=watts, price=price)
    path = measurements / NAME if measurements.is_dir() else measurements
    found = Measurements.load(path)
    decision = decide(found, goal, deadline_s=deadline, memory_bytes=memory)
    folder = make_run_folder(out, f"{found.job.name}-{objective}")
    found.save(folder / NAME)
    return finish(make_console(as_json), folder, found, decision, as_json)


@cli.command()
@click.argument("job")
@click.option(
    "--plan", "plan_path", type=click.Path(path_type=Path), help="A plan.json."
)
@click.option("--batch-size", type=int, help="Instead of a plan; the rate follows.")
@click.option(
    "--schedule",
    help="A batch that changes: ramp:32:512:3epochs, noise:0.5, smith:512, ….",
)
@click.option("--rate", help="Learning-rate decay: cosine:10epochs[:0.01], ….")
@click.option("--rule", default="auto", help="How the rate follows the batch.")
@click.option("--noise-scale", type=float, help="For the noise-aware rules.")
@click.option("--exponent", type=float, help="For --rule exponent.")
@click.option(
    "--epochs", type=float, help="At most so many passes; a target met ends it."
)
@click.option("--examples", type=int, help="The same, in examples.")
@click.option("--micro-batch", type=int, help="Most examples in memory at once.")
@click.option("--largest", type=int, help="Never a batch beyond.")
@click.option("--clip-norm", type=float, help="Largest norm of the gradient.")
@click.option(
    "--nonfinite",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    help="What a NaN or infinite loss does.",
)
@click.option("--shard", is_flag=True, help="Shard the model over ranks (FSDP2).")
@click.option("--workers", type=int, default=0, help="Processes that read the data.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, if any.")
@click.option(
    "--save-every",
    type=DURATION,
    default="300",
    show_default=True,
    help="Time between checkpoints.",
)
@click.option("--ledger", is_flag=True, help="Prove every example seen once.")
@THREADS
@OUT
@JSON
def train(
    job: str,
    plan_path: Path | None,
    batch_size: int | None,
    schedule: str | None,
    rate: str | None,
    epochs: float | None,
    examples: int | None,
    keep_threads: bool,
    resume: bool,
    save_every: float,
    workers: int,
    out: Path | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Train JOB by a plan, a schedule or a batch size, to its target or for so long.

    On several processes: torchrun --nproc-per-node N -m rightbatch train JOB …
    """
    from rightbatch.cli.train import train_command

    return train_command(
        job,
        plan_path,
        batch_size=batch_size,
        schedule=schedule,
        rate=rate,
        epochs=epochs,
        examples=examples,
        keep_threads=keep_threads,
        resume=resume,
        save_every_s=save_every,
        num_workers=workers,
        out=out,
        as_json=as_json,
        settings=settings,
    )


@cli.command()
@click.argument("measured", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--devices", default="1..64", show_default=True, help="1..64 or 1,2,6.")
@click.option("--bandwidth", type=BANDWIDTH, help="Of a node: 400Gb/s, 50GB/s.")
@click.option("--latency", type=LATENCY, help="Of a message: 20us.")
@click.option("--memory", type=MEMORY, help="Most memory a step may take.")
@click.option("--steps", type=int, help="Steps to the target at today's batch.")
@click.option("--watts", type=float, help="Power of one device.")
@click.option("--price", type=float, help="Price of one device for an hour.")
@click.option("--gradient-bytes", type=MEMORY, help="Exchanged in a step: 400MB.")
@click.option("--prior", help="A published B_crit: resnet, lm:300M, ….")
@click.option("--measure", is_flag=True, help="Measure the network, under torchrun.")
@JSON
def cluster(measured: Path, devices: str, **settings: Any) -> int:
    """Plan for many devices from the measurements of one: PLAN is a run folder.

    Says the best batch and its split for every number of devices, the time, energy
    and price, where more devices stop paying, and why.
    """
    from rightbatch.cli.cluster import cluster_command

    return cluster_command(measured, devices, **settings)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> int:
    """Write the report of a RUN folder again, from what it holds."""
    from rightbatch.measure.record import Measurements
    from rightbatch.plan.decide import decide
    from rightbatch.plan.objectives import objective_named
    from rightbatch.report.page import Page
    from rightbatch.training.plan import Plan
    from rightbatch.training.run_folder import MEASUREMENTS, PLAN, REPORT, TRACE
    from rightbatch.training.trace import read_trace

    found = Measurements.load(run / MEASUREMENTS)
    goal = None
    limits: dict[str, float | None] = {}
    if (run / PLAN).exists():
        saved = Plan.load(run / PLAN)
        watts = 1.0 if saved.objective == "energy" else None  # the amount cancels
        goal = objective_named(saved.objective, watts=watts)
        limits = {
            "deadline_s": saved.deadline_s,
            "memory_bytes": saved.memory_limit_bytes,
        }
    decision = decide(
        found,
        goal,
        deadline_s=limits.get("deadline_s"),
        memory_bytes=limits.get("memory_bytes"),
    )
    rows = read_trace(run / TRACE) if (run / TRACE).exists() else ()
    page = Page(found, decision.choice, decision.plan, rows)
    path = page.save(run / REPORT)
    click.echo(f"{path}  {path.stat().st_size / 1e6:.2f} MB, opens offline")
    return DECIDED


@cli.command()
@click.argument("job")
@JSON
def check(job: str, as_json: bool) -> int:
    """Check JOB for what would make its measurements wrong; measure nothing.

    JOB may also be a DataLoader or a BatchStream (train.py:loader): then what it feeds
    is audited.

    Exit status: 0 nothing to mend, 1 something (or it cannot be made), 2 no such name.
    """
    console, spec, _ = begin(job, None, as_json, make=False)
    from rightbatch.core.json_io import to_plain
    from rightbatch.data.audit.audit import audit, is_loader
    from rightbatch.job.loading import as_job
    from rightbatch.lint.linter import check as run_check
    from rightbatch.report.terminal import print_plain

    made = quiet_named(job, as_json)
    loader = is_loader(made)
    findings = audit(made) if loader else run_check(as_job(job, made))
    if as_json:
        print_document(to_plain(findings))
    else:
        print_plain(console, folded(str(findings)))
        if findings and not loader:
            print_plain(console, f"next: rightbatch tune {shlex.quote(spec.text)}")
    return DECIDED if findings else FAILED


@cli.command()
@JSON
def doctor(as_json: bool) -> int:
    """Say what was detected on this machine, and what follows from it."""
    from rightbatch.report.doctor import examine, lines

    found = examine()
    if as_json:
        print_document(found)
    else:
        click.echo(lines(found))
    return DECIDED


def main() -> None:
    """Run the command line; every failure is one clear message."""
    note_interrupts()
    try:
        status = cli.main(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        status = USAGE
    except click.ClickException as error:
        error.show()
        status = FAILED
    except RightbatchError as error:
        click.echo(folded(f"error: {error}"), err=True)
        status = _status(error)
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nInterrupted.", err=True)
        status = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; nothing is left to say
        status = DECIDED
    except Exception as error:
        click.echo(report_bug(error), err=True)
        status = FAILED
    if status == INTERRUPTED:
        # Python ends by the signal itself, whatever status is asked for, if Ctrl-C came
        # while it was running source text (as every dataclass does when it is made).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else DECIDED)


def _status(error: RightbatchError) -> int:
    if isinstance(error, UnidentifiedError):
        return UNDECIDED
    return USAGE if isinstance(error, SettingError) else FAILED


if __name__ == "__main__":
    main()
