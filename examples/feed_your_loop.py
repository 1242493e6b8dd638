"""Feed an ordinary loop: a batch that grows, a crash, and an exact resume.

python examples/feed_your_loop.py
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import rightbatch as rb

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
data = TensorDataset(x, y)
folder = tempfile.mkdtemp()
saved: dict = {}


def train(until: int, batch_size: int, micro_batch: int) -> None:
    """Train to the end of an epoch, or crash: from where the last state stands."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stream = rb.BatchStream(
        data, batch_size, micro_batch=micro_batch, num_workers=2, ledger=folder
    )
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        stream.load_state_dict(saved["stream"])
    while stream.epoch < until:
        for step in stream.steps():
            total = 0.0
            for micro in step:
                inputs, labels = micro.data
                loss = F.cross_entropy(model(inputs), labels) * micro.share
                loss.backward()
                total += loss.item()
            optimizer.step()
            optimizer.zero_grad()
            if stream.step == 70:
                stream.batch_size = 128  # holds at the very next step
            if stream.step % 25 == 0:
                saved["model"] = {k: v.clone() for k, v in model.state_dict().items()}
                saved["optimizer"] = optimizer.state_dict()
                saved["stream"] = stream.state_dict()
                print(
                    f"step {stream.step:3}  epoch {stream.epoch}  batch "
                    f"{step.examples:3} in {len(step)}  loss {total:.3f}"
                )
            if stream.step == 90 and batch_size == 64:
                print("crash: 15 steps since the last state are gone")
                return


train(until=5, batch_size=64, micro_batch=16)
print(f"resume at step {saved['stream']['step']}, with other micro-batches")
train(until=5, batch_size=32, micro_batch=40)
print(rb.data.Ledger(folder).audit())
print(rb.audit(rb.BatchStream(data, 64), labels=y))
