"""Starting programs on several gloo processes of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import rightbatch as rb

SOURCE, TESTS = Path(rb.__file__).parents[1], Path(__file__).parent
PATHS = os.pathsep.join(map(str, [SOURCE, TESTS, os.environ.get("PYTHONPATH", "")]))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}


def torchrun(
    *program: str | Path, cwd: Path, ranks: int = 2
) -> subprocess.CompletedProcess[str]:
    """Run it to its end; this library and the helpers of the tests can be imported."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", *map(str, program)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=ENVIRONMENT,
        timeout=200,
        check=False,
    )
