"""Check an ordinary loop's own objects before it trains: model, loss, batch, loader.

python examples/check_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb

digits = load_digits()
data = TensorDataset(
    torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
)
model = nn.Sequential(
    nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels, reduction="sum")


def mended(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return loss(model, batch) / len(batch[1])


loader = DataLoader(data, batch_size=32)
batch = next(iter(loader))

print("As it was written, with a sum for a loss and no shuffle:")
findings = rb.check(
    model=model, loss=loss, batch=batch, optimizer=optimizer, loader=loader
)
print(findings)

print("\nMended, with a norm that needs no other examples:")
model[1] = nn.LayerNorm(128)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = DataLoader(data, batch_size=32, shuffle=True)
findings = rb.check(
    model=model, loss=mended, batch=batch, optimizer=optimizer, loader=loader
)
print(findings)
findings.raise_errors()  # stops a loop where an error is left
