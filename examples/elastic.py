"""As many processes as there are: the batch stays, every example comes exactly once.

    torchrun --nproc-per-node=2 examples/elastic.py runs/elastic

Kill it, and start it with 4, or 1: it goes on from its last checkpoint. On machines
that come and go, torchrun itself starts it again with those that are left:

    torchrun --nnodes=1:4 --max-restarts=20 --rdzv-backend=c10d \
        --rdzv-endpoint=HOST:29400 examples/elastic.py runs/elastic
"""

import sys

import torch

import rightbatch as rb
from rightbatch.training.ranks import join, leave

folder = sys.argv[1]
x = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0))
job = rb.Job(
    model=lambda: torch.nn.Linear(8, 1),
    data=(x, x.sum(1, keepdim=True)),
    loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    batch_size=64,  # over all processes, however many they are
    epochs=10,
)
joined = join()
run = rb.train(
    job,
    schedule="stages:0=64,20k=128",
    micro_batch=8,
    ledger=True,  # writes every example down, as proof
    out=folder,
    resume="auto",
    save_every_s=0.2,
)
first = not joined or torch.distributed.get_rank() == 0
if first:
    print(
        f"batch {run.batch_size}, {run.last.examples:,} examples, resumed {run.resumed}"
    )
if joined:
    torch.distributed.barrier()
if first:
    print(rb.data.Ledger(f"{folder}/ledger").audit())
if joined:
    leave()
