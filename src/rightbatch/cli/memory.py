"""The command ``memory``: the largest batch that fits, and what binds."""

from __future__ import annotations

import os
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rightbatch.cli.console import DECIDED, begin, load_quietly, print_document
from rightbatch.cli.options import DURATION, JOB, JSON, MEMORY, OUT
from rightbatch.core.units import show_bytes

if TYPE_CHECKING:
    from rightbatch.memory.largest_batch import MemoryLaw

TAX = 1.15  # of what was asked for; above it malloc is worth a word [assumed]


@click.command()
@JOB
@click.option("--limit", type=MEMORY, help="Most memory a step may take.")
@click.option(
    "--accumulation", type=int, default=1, help="Micro-batches a step is made of."
)
@click.option(
    "--margin", type=float, default=0.0, help="Share kept for longer examples: 0.1."
)
@click.option("--device", help="Predict for a device that is not here: cuda.")
@click.option(
    "--ranks", type=int, default=1, help="Predict for one of so many processes."
)
@click.option("--shard", is_flag=True, help="Sharded over them (FSDP2), not copied.")
@click.option("--no-verify", is_flag=True, help="Make no real steps.")
@click.option(
    "--patience",
    type=DURATION,
    default="60",
    show_default=True,
    help="Longest time for a real step.",
)
@OUT
@JSON
def memory(
    job: str,
    limit: float | None,
    accumulation: int,
    margin: float,
    device: str | None,
    ranks: int,
    shard: bool,
    no_verify: bool,
    patience: float,
    out: Path | None,
    as_json: bool,
) -> int:
    """Find the largest batch of JOB that fits in memory.

    One step is traced, and a few real ones are made where they can do no harm.
    """
    with begin(job, out, as_json) as (console, spec, folder):
        from rightbatch.core.json_io import to_plain, write_json
        from rightbatch.integrations.loading import load_job
        from rightbatch.memory.largest_batch import largest_batch
        from rightbatch.report.answer import files_lines
        from rightbatch.report.terminal import TerminalProgress, print_plain
        from rightbatch.training.run_folder import MEMORY as NAME

        law = largest_batch(
            load_quietly(load_job, job, as_json),
            limit,
            accumulation=accumulation,
            margin=margin,
            verify=not no_verify,
            device=device,
            ranks=ranks,
            sharded=shard,
            patience_s=patience,
            progress=TerminalProgress(console, phases=2),
        )
        path = folder / NAME
        write_json(path, law, "rightbatch/memory/1")
        if as_json:
            words = {"binding": str(law.binding), "malloc": malloc_hint(law)}
            place = {"status": DECIDED, "folder": str(folder)}
            print_document({**place, **to_plain(law), **words})
            return DECIDED
        print_plain(console, "\n" + "\n".join(memory_lines(law, accumulation)))
        files = [("saved", str(path))]
        if device is None and ranks == 1:
            following = f"rightbatch tune {shlex.quote(spec.text)}"
            if limit is not None:
                following += f" --memory {limit:.0f}B"
            files.append(("next", following))
        print_plain(console, "\n" + files_lines(files))
        return DECIDED


def memory_lines(law: MemoryLaw, accumulation: int) -> list[str]:
    """The answer, for people, in 80 columns."""
    from rightbatch.report.terminal import wrapped

    envelope, certificate = law.envelope, law.certificate
    many = " of a step in several pieces" if accumulation > 1 else ""
    lines = [f" {line}" for line in textwrap.wrap(answer(law, accumulation), 78)]
    lines.append("")
    for i, line in enumerate(law.budget.lines()):
        lines.append(f" {'' if i else 'Budget':<7}{line}")
    lines += ["", f" Peak{many}, by examples at once", *_peaks(law)]
    parts = [
        ("parameters", envelope.parameters),
        ("gradients", envelope.gradients),
        ("optimizer", envelope.state),
        ("buffers", envelope.buffers),
    ]
    named = ", ".join(f"{name} {show_bytes(n)}" for name, n in parts if n)
    if named:
        lines += ["", wrapped("Always", named)]
    for first, segment in envelope.changes(4 * law.largest)[1:5]:
        lines.append(f" From   {first:,} examples on it is {segment}"[:80])
    lines.append(wrapped("Method", f"{certificate.method}; {law.example}"))
    for trial in certificate.trials:
        predicted = show_bytes(envelope.peak(trial.micro_batch))
        text = f"did not fit, predicted {predicted}"
        if trial.fits:
            text = f"took {show_bytes(trial.taken)}, predicted {predicted}"
        elif trial.fits is None:
            text = trial.seen
        lines.append(f" Trial  {trial.micro_batch:,}: {text}"[:80])
    hint = malloc_hint(law)
    return [*lines, wrapped("Malloc", hint)] if hint else lines


def _peaks(law: MemoryLaw) -> list[str]:
    """The predicted peak at some batches, and the operation that binds there."""
    envelope, rows = law.envelope, []
    refused = [t.micro_batch for t in law.certificate.trials if t.fits is False]
    batches = sorted({1, *(4**i for i in range(1, 12)), law.largest})
    for batch in (b for b in batches if b <= 4 * law.largest):
        mark = "> " if batch == law.largest else "  "
        peak = envelope.peak(batch)
        row = f"{mark}{batch:>11,}  {show_bytes(peak):>9}  {envelope.binding(batch)}"
        over = peak > law.budget.bytes or any(batch >= b for b in refused)
        if over and batch > law.largest:
            row = f"{row[:70]:<70} too much"
        rows.append(row[:80])
    return rows


def answer(law: MemoryLaw, accumulation: int) -> str:
    """One sentence or two."""
    certificate, limit = law.certificate, show_bytes(law.budget.bytes)
    step = f" ({accumulation * law.largest:,} a step)" if accumulation > 1 else ""
    text = (
        f"At most {law.largest:,} examples at once within {limit}{step}. The most "
        f"memory is in use during {law.binding}."
    )
    if law.largest == law.examples:
        text = (
            f"All {law.largest:,} examples of the data set fit at once within {limit}: "
            f"memory is not what limits the batch."
        )
    if certificate.confidence == "verified":
        took = show_bytes(certificate.taken_bytes)
        more = f" Not searched further: {certificate.why}." if certificate.why else ""
        return f"{text} Verified: real steps of it took {took}.{more}"
    text = f"{text} Predicted, not verified: {certificate.why}."
    if law.envelope.convolves and law.envelope.factor == 1.0:
        text += (
            " Convolutions take 8 to 40 % more for themselves than a trace sees: leave "
            "room for that."
        )
    return text


def malloc_hint(law: MemoryLaw) -> str:
    """What would help where malloc keeps much more than was asked for, or nothing."""
    certificate = law.certificate
    fixed = "MALLOC_MMAP_THRESHOLD_" in os.environ or law.budget.device != "cpu"
    tax = certificate.taken_bytes / max(certificate.predicted_bytes, 1)
    if fixed or tax < TAX or certificate.taken_bytes < 64 * 2**20:
        return ""
    return (
        f"the C library held {tax:.2f} x what was asked for. With "
        "MALLOC_MMAP_THRESHOLD_=65536 in the environment it gives large blocks back: "
        f"up to {law.envelope.largest(law.budget.bytes):,} examples might fit, at some "
        "time for every block."
    )
