"""Run folders: made before anything is measured, never written over."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from rightbatch.core.errors import RunFolderError

MEASUREMENTS, PLAN, TRACE = "measurements.json", "plan.json", "trace.jsonl"
REPORT, CHECKPOINTS, RUN = "report.html", "checkpoints", "run.json"
RUNS = "compared.html"  # several runs on one page
LEDGER, MEMORY, JOB = "ledger", "memory.json", "job.json"
COMPARISON, LAB, WEIGHTS = "comparison.json", "lab.json", "weights.pt"
STUDY, JOURNAL = "study.json", "study.journal"
KNOWN = (
    *(MEASUREMENTS, PLAN, TRACE, REPORT, CHECKPOINTS, RUN, MEMORY, JOB),
    *(COMPARISON, LAB, WEIGHTS, STUDY, JOURNAL),
)


def make_run_folder(out: Path | None, stem: str) -> Path:
    """Make the folder of a run, or refuse.

    Args:
        out: The folder asked for; default ``runs/STEM-DATE-TIME``.
        stem: Short name of the job.

    Raises:
        RunFolderError: It holds a run already, is a file, or cannot be written.
    """
    if out is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        out = _unused(Path("runs") / f"{stem}-{stamp}")
    if out == Path():
        raise RunFolderError(
            "the run folder needs a name", seen="--out ''", fix="--out runs/mine"
        )
    held = [name for name in KNOWN if (out / name).exists()]
    if held:
        raise RunFolderError(
            f"{out} already holds a run",
            seen=", ".join(held),
            why="nothing that was measured is written over",
            fix="another --out, or none: each run then gets a folder of its own; "
            "`train` and `sweep` go on with theirs with --resume",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise RunFolderError(
            f"cannot write into {out}",
            seen=f"{type(error).__name__}: {error.strerror}",
            fix="--out DIR with a folder that can be written",
        ) from error
    return out


def _unused(path: Path) -> Path:
    """The path, or with a counter where two runs started in one second."""
    count, tried = 2, path
    while tried.exists():
        tried = path.with_name(f"{path.name}-{count}")
        count += 1
    return tried
