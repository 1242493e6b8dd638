"""Starting programs, on one process of this machine or on several by gloo."""

import os
import subprocess
import sys
from pathlib import Path

import rightbatch as rb

SOURCE, TESTS = Path(rb.__file__).parents[1], Path(__file__).parent


def environment() -> dict[str, str]:
    """One thread; this library and the helpers of the tests can be imported."""
    paths = os.pathsep.join(map(str, [SOURCE, TESTS, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


def launched(*program: str | Path, ranks: int = 1, restarts: int = 0) -> list[str]:
    """The command line that starts a program on so many processes."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone"]
        start += [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
    return [*start, *map(str, program)]


def torchrun(
    *program: str | Path, cwd: Path, ranks: int = 2
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        launched(*program, ranks=ranks),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        timeout=200,
        check=False,
    )
