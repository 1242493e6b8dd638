"""``sweep --branch``: the critical batch at a checkpoint, by training on from it."""

from __future__ import annotations

from pathlib import Path

from rightbatch.cli.console import (
    DECIDED,
    UNDECIDED,
    announce,
    keeping,
    load_quietly,
    print_document,
)
from rightbatch.core.errors import RunFolderError
from rightbatch.job.loading import look_up


def run_branch(
    job: str, run: Path, *, budget: float, out: Path | None, as_json: bool
) -> int:
    """Branch, keep what was trained, say what it shows.

    Args:
        job: By name.
        run: A run folder or a checkpoint.
        budget: Seconds.
        out: Folder of the branches; default: beside the checkpoint. What it holds of
            the same checkpoint is gone on with.
        as_json: One document on standard output instead of lines.

    Returns:
        The exit status.
    """
    spec = look_up(job)
    folder = out or (run if run.is_dir() else run.parent)
    console = announce(spec, as_json)
    with keeping(folder, as_json):
        from rightbatch.core.json_io import to_plain
        from rightbatch.core.units import show_number
        from rightbatch.integrations.loading import load_job
        from rightbatch.report.answer import files_lines
        from rightbatch.report.terminal import TerminalProgress, print_plain, wrapped
        from rightbatch.sweep.branching import branch_probe
        from rightbatch.training.any_checkpoint import load_start

        loaded = load_quietly(load_job, job, as_json)
        at = load_start(run).path
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"cannot write into {folder}",
                seen=f"{type(error).__name__}: {error.strerror}",
                fix="--out DIR with a folder that can be written",
            ) from error
        record = folder / f"branches-{at.stem}.json"
        probe = branch_probe(
            loaded,
            at,
            budget_s=budget,
            record=record,
            progress=TerminalProgress(console, phases=1),
        )
        if as_json:
            plain = {"record": str(record), "verdict": probe.verdict}
            print_document(plain | {"probe": to_plain(probe)})
        else:
            rows = [
                f" {p.batch_size:>8,} {show_number(p.lr):>9}  {p.loss}"
                for p in probe.penalties
            ]
            head = f" {'batch':>8} {'lr':>9}  loss over that of B = {probe.batch_size}"
            files = files_lines([("data", str(record))])
            text = ["", head, *rows, "", wrapped("answer", probe.verdict), "", files]
            print_plain(console, "\n".join(text))
    return DECIDED if probe.decided else UNDECIDED
