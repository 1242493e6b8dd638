"""Run under torchrun by test_memory.py: every rank asks for the largest batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

import rightbatch as rb
from rightbatch.training.ranks import join, leave
from test_memory import MIB, job_of


def main() -> None:
    """Two ranks with unlike limits; then one whose limit is too small."""
    join()
    rank = dist.get_rank()
    law = rb.largest_batch(job_of(), (30 + 30 * rank) * MIB, verify=False)
    found: dict[str, object] = {"rank": rank, "largest": law.largest}
    found["own"] = law.envelope.largest(30 * MIB)
    try:
        rb.largest_batch(job_of(), 64 * MIB if rank == 0 else 1000.0, verify=False)
    except rb.RightbatchError as error:
        found["error"] = f"{type(error).__name__}: {error.what}"
    everyone: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(everyone))
    leave()


if __name__ == "__main__":
    main()
