"""The command ``measure --memory``: the law of a step's memory, and what fits."""

from __future__ import annotations

import os
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from rightbatch.cli.console import (
    DECIDED,
    INTERRUPTED,
    begin,
    drop_if_empty,
    print_document,
    quiet_load,
)
from rightbatch.core.errors import RightbatchError
from rightbatch.core.units import show_bytes

if TYPE_CHECKING:
    from rightbatch.memory.largest_batch import MemoryLaw

TAX = 1.15  # of what was asked for; above it malloc is worth a word [assumed]


def memory_command(
    job: str,
    *,
    limit: float | None,
    accumulation: int,
    margin: float,
    device: str | None,
    ranks: int,
    shard: bool,
    patience_s: float,
    verify: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Find the largest batch of a job and say what binds; returns the exit status."""
    console, spec, folder = begin(job, out, as_json)
    from rightbatch.core.json_io import to_plain, write_json
    from rightbatch.memory.largest_batch import largest_batch
    from rightbatch.report.terminal import TerminalWatcher, files_lines, print_plain
    from rightbatch.training.run_folder import MEMORY

    watcher = TerminalWatcher(console, phases=2)
    path = folder / MEMORY
    try:
        law = largest_batch(
            quiet_load(job, as_json),
            limit,
            accumulation=accumulation,
            margin=margin,
            verify=verify,
            device=device,
            ranks=ranks,
            sharded=shard,
            patience_s=patience_s,
            watcher=watcher,
        )
        write_json(path, law, "rightbatch/memory/1")
    except KeyboardInterrupt:
        watcher.close()
        drop_if_empty(folder)
        print_plain(console, "\nInterrupted; nothing was kept.")
        return INTERRUPTED
    except RightbatchError:
        watcher.close()
        drop_if_empty(folder)
        raise
    if as_json:
        more = {"binding": str(law.binding), "malloc": malloc_hint(law)}
        print_document(
            {"status": DECIDED, "folder": str(folder), **to_plain(law), **more}
        )
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
    parts = [
        ("parameters", envelope.parameters),
        ("gradients", envelope.gradients),
        ("optimizer", envelope.state),
        ("buffers", envelope.buffers),
    ]
    named = ", ".join(f"{name} {show_bytes(n)}" for name, n in parts if n)
    many = " of a step in several pieces" if accumulation > 1 else ""
    lines = [
        *(f" {line}" for line in textwrap.wrap(answer(law, accumulation), 78)),
        "",
        *(
            f" {'' if i else 'Budget':<7}{line}"
            for i, line in enumerate(law.budget.lines())
        ),
        "",
        f" Peak{many}, by examples at once",
    ]
    marks = sorted({1, *(4**i for i in range(1, 12)), law.largest})
    took = {t.micro_batch: t for t in certificate.trials}
    for batch in (b for b in marks if b <= 4 * law.largest):
        mark = "> " if batch == law.largest else "  "
        peak = show_bytes(envelope.peak(batch))
        row = f"{mark}{batch:>11,}  {peak:>9}  {envelope.binding(batch)}"
        fails = min(
            (t.micro_batch for t in took.values() if t.fits is False), default=0
        )
        over = envelope.peak(batch) > law.budget.bytes or (fails and batch >= fails)
        if over and batch > law.largest:
            row = f"{row[:70]:<70} too much"
        lines.append(row[:80])
    if named:
        lines += ["", wrapped("Always", named)]
    changes = envelope.changes(4 * law.largest)[1:]
    for first, segment in changes[:4]:
        lines.append(f" From   {first:,} examples on it is {segment}"[:80])
    lines.append(wrapped("Method", f"{certificate.method}; {law.example}"))
    for trial in certificate.trials:
        asked = show_bytes(envelope.peak(trial.micro_batch))
        text = f"did not fit, predicted {asked}"
        if trial.fits:
            text = f"took {show_bytes(trial.taken)}, predicted {asked}"
        elif trial.fits is None:
            text = trial.seen
        lines.append(f" Trial  {trial.micro_batch:,}: {text}"[:80])
    hint = malloc_hint(law)
    if hint:
        lines.append(wrapped("Malloc", hint))
    return lines


def answer(law: MemoryLaw, accumulation: int = 1) -> str:
    """One sentence or two."""
    certificate = law.certificate
    limit = show_bytes(law.budget.bytes)
    text = (
        f"At most {law.largest:,} examples at once within {limit}"
        + (f" ({accumulation * law.largest:,} a step)" if accumulation > 1 else "")
        + f". The most is alive in {law.binding}."
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
    """Where malloc keeps much more than was asked for: what would help."""
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
