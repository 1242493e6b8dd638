"""A loop of your own: a growing batch, exact accumulation, memory survived, a resume.

    python examples/grow_the_batch.py        # again: goes on where it was stopped

Everything used here works alone: take the stream, the accumulator or the controller.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import rightbatch as rb

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
data = (
    torch.tensor(digits.data / 16, dtype=torch.float32),
    torch.tensor(digits.target),
)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def loss(model, batch):
    """Mean over the examples; (sum, count) where targets are masked."""
    return F.cross_entropy(model(batch[0]), batch[1])


# Over 20 epochs the rate would decay to 2 %; the batch grows to 512 instead.
decay = rb.schedules.Rate.cosine(20 * len(digits.target), floor=0.02)
schedule = rb.schedules.InsteadOfDecay(16, decay, most=512)
print(schedule)
print(schedule.table(20 * len(digits.target)))

stream = rb.BatchStream(data, schedule.start, seed=0, micro_batch=64, tail="carry")
step = rb.Accumulator(model, loss, optimizer, micro_batch=64)
controller = rb.Controller(schedule, optimizer, batch_size=16, stream=stream)

parts = {
    "model": model,
    "optimizer": optimizer,
    "stream": stream,
    "step": step,
    "controller": controller,
}
saved = Path("grow_the_batch.pt")
seen = 0
if saved.exists():
    state = torch.load(saved, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    seen = state["seen"]
    print(f"going on from {seen:,} examples")

while stream.epoch < 20:
    for batch in stream.steps():  # one epoch
        update = step(batch)  # one exact update, whatever the batch
        seen += batch.examples
        controller(seen)  # batch and rate for the next one
    print(
        f"epoch {stream.epoch}: B {stream.batch_size}, loss {update.loss:.4f}, "
        f"lr {optimizer.param_groups[0]['lr']:.3g}"
    )
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**state, "seen": seen}, "grow_the_batch.tmp")
    os.replace("grow_the_batch.tmp", saved)  # whole, or not at all
saved.unlink()
