"""Kill a run at random moments, go on, and compare it bit for bit with one left alone.

    PYTHONPATH=tests python benchmarks/resume.py kills --kills 50 --workers 0
    PYTHONPATH=tests python benchmarks/resume.py ranks

`kills` sends SIGKILL to `rightbatch train … --resume` at random times, also while a
checkpoint is being written, until the run ends; then parameters, optimizer state and
the ledger of examples are compared. `ranks` goes on with 2, then 1, then 4 processes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import write_json
from resumed_runs import same, state_of
from rightbatch.data.loading.ledger import Ledger
from rightbatch.training.trace import read_trace

TESTS = Path(__file__).parent.parent / "tests"
STAGES = "stages:0=16,2k=32,4k=48"  # alike on any number of ranks
SCHEDULE = "ramp:16:48:20epochs"


def command(
    out: Path,
    epochs: int,
    job: str,
    workers: int,
    ranks: int = 1,
    schedule: str = SCHEDULE,
) -> list[str]:
    """The command line of a run that goes on if there is something to go on with."""
    start = [sys.executable, "-m", "rightbatch"]
    if ranks > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += [f"--nproc-per-node={ranks}", "-m", "rightbatch"]
    return [
        *start,
        *("train", f"{TESTS / 'resumed_job.py'}:{job}", "--out", str(out)),
        *("--epochs", str(epochs), "--schedule", schedule, "--workers", str(workers)),
        *("--micro-batch", "8", "--resume", "--save-every", "0.05", "--ledger"),
        "--keep-threads",
    ]


def environment() -> dict[str, str]:
    """One thread, and no display."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}


def until_started(process: subprocess.Popen[bytes], out: Path, before: float) -> None:
    """Wait until this life has written a checkpoint of its own, or has ended."""
    while process.poll() is None:
        times = [p.stat().st_mtime for p in out.glob("checkpoints/*") if p.exists()]
        if times and max(times) > before:
            return
        time.sleep(0.002)


def kills(count: int, workers: int, epochs: int, seed: int, folder: Path) -> None:
    """Kill one run so many times, leave another alone, compare."""
    generator = random.Random(seed)
    whole, killed = folder / f"whole-{workers}", folder / f"killed-{workers}"
    begun = time.monotonic()
    subprocess.run(
        command(whole, epochs, "job", workers),
        check=True,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    print(f"left alone: {time.monotonic() - begun:.0f} s", flush=True)
    done = writing = lives = 0
    while True:
        lives += 1
        before = time.time()
        process = subprocess.Popen(
            command(killed, epochs, "job", workers),
            env=environment(),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        if done < count:
            until_started(process, killed, before)
            if generator.random() < 0.5:
                time.sleep(generator.random() * 0.5)
            else:  # in the middle of writing one
                ends = time.monotonic() + 1
                while time.monotonic() < ends and process.poll() is None:
                    if any(killed.glob("checkpoints/*.tmp")):
                        break
        if done < count and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            writing += any(killed.glob("checkpoints/*.tmp"))
            if done % 10 == 0:
                steps = state_of(killed)["steps"]
                print(f"  {done} kills, step {steps}", flush=True)
            continue
        assert process.wait() == 0, "a life ended by itself, and badly"
        break
    a, b = state_of(whole), state_of(killed)
    kept = ("model", "buffers", "optimizer", "stream", "controller", "random", "steps")
    equal = {key: same(a[key], b[key]) for key in kept}
    rows = [
        [(r.steps, r.loss, r.batch_size) for r in read_trace(f / "trace.jsonl")]
        for f in (whole, killed)
    ]
    print(f"workers {workers}: {done} kills in {lives} lives, {writing} in the middle")
    print(f"of a write; {b['steps']} steps, {b['examples']} examples")
    audit = Ledger(killed / "ledger").audit()
    print(f"  equal bit for bit: {equal}")
    print(f"  trace equal: {rows[0] == rows[1]} ({len(rows[0])} rows)")
    print(f"  ledger: {audit}")
    write_json(
        f"resume-kills-{workers}-workers",
        {
            "kills": done,
            "while_writing": writing,
            "steps": b["steps"],
            "examples": b["examples"],
            "equal_bit_for_bit": equal,
            "trace_equal": rows[0] == rows[1],
            "ledger": str(audit),
        },
    )


def ranks(epochs: int, folder: Path) -> None:
    """2, then 1, then 4 processes, against one process all the way."""
    whole, changed = folder / "one", folder / "changed"
    for out, plan in ((whole, [(1, epochs)]), (changed, None)):
        thirds = [(2, epochs // 3), (1, 2 * epochs // 3), (4, epochs)]
        for world, until in plan or thirds:
            subprocess.run(
                command(out, until, "plain", 0, world, STAGES),
                check=True,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
    a, b = state_of(whole), state_of(changed)
    worst = max(
        float((a["model"][k] - b["model"][k]).norm() / a["model"][k].norm())
        for k in a["model"]
    )
    losses = [
        {r.steps: r.loss for r in read_trace(f / "trace.jsonl")}
        for f in (whole, changed)
    ]
    shared = sorted(losses[0].keys() & losses[1].keys())
    apart = max(abs(losses[0][s] / losses[1][s] - 1) for s in shared)
    print(f"2 -> 1 -> 4 ranks: {b['steps']} steps, parameters {worst:.1e} apart,")
    audit = Ledger(changed / "ledger").audit()
    print(f"  loss curve {apart:.1e} apart at {len(shared)} places")
    print(f"  ledger: {audit}")
    write_json(
        "resume-ranks",
        {
            "ranks": [2, 1, 4],
            "steps": b["steps"],
            "parameters_apart": worst,
            "loss_apart": apart,
            "ledger": str(audit),
        },
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["kills", "ranks"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Folder to keep the runs in.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = given.keep or Path(made)
        if given.what == "kills":
            kills(given.kills, given.workers, given.epochs, given.seed, folder)
        else:
            ranks(12, folder)


if __name__ == "__main__":
    main()
