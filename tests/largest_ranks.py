"""Run under torchrun by memory/test_largest_batch.py: ranks of unlike limits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

import rightbatch as rb
from memory_jobs import MIB, job_of
from rightbatch.training.ranks import join, leave


def main() -> None:
    """Rank 0 within 30 MiB, rank 1 within 60."""
    join()
    rank = dist.get_rank()
    law = rb.largest_batch(job_of(count=10**6), (30 + 30 * rank) * MIB, verify=False)
    answer = {
        "largest": law.largest,
        "within_30_mib": law.envelope.largest(30 * MIB),
    }
    answers: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, answer)
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(answers))
    leave()


if __name__ == "__main__":
    main()
