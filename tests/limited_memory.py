"""Run in a fresh process by training/test_real_limit.py: a run that meets a real limit.

The limit is of the data segment, so that torch's own allocator on the CPU fails as it
does on a machine that is full.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import rightbatch as rb


def allow(more: int) -> None:
    """So many bytes beyond what is in use now."""
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
    limit = used * 1024 + more
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    """Five steps of a batch of 1,024, with or without a limit; parameters to a file."""
    more, micro, out = int(sys.argv[1]), int(sys.argv[2]) or None, Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 2048),
        nn.GELU(),
        nn.Linear(2048, 2048),
        nn.GELU(),
        nn.Linear(2048, 8),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    x, y = torch.randn(1024, 64), torch.randint(8, (1024,))
    heard: list[str] = []
    step = rb.Accumulator(
        model,
        lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]),
        optimizer,
        micro,
        check=False,
        tell=heard.append,
    )
    warm = nn.Linear(64, 64)
    warm(x[:4]).sum().backward()
    if more:
        allow(more)
    updates = [step((x, y)) for _ in range(5)]
    values = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.save(values, out)
    counts = sorted({int(s["step"]) for s in optimizer.state.values()})
    print(
        json.dumps(
            {
                "retries": [u.retries for u in updates],
                "pieces": updates[-1].micro_batches,
                "steps": counts,
                "heard": heard,
            }
        )
    )


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
