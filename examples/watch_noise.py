"""Watch the gradient noise of an ordinary training loop: three lines are ours.

python examples/watch_noise.py
"""

import math

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import rightbatch as rb

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

# A step takes half a millisecond here, of which 2 % (the default) buy few measurements.
monitor = rb.NoiseMonitor(model, optimizer, math.inf, population=len(x))  # 1

BATCH = 32
for epoch in range(12):
    for index in torch.randperm(len(x)).split(BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[index]), y[index])
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1:2}  {monitor.read(window=5 * len(x))}")  # 2

noise = monitor.read(window=5 * len(x))  # 3
print(f"\n{noise.source}: {noise.why}")
print(f"{noise.steps} steps in the window of {noise.window:,} examples")
for name, layer in noise.by_layer.items():
    print(f"  {name:3} {layer.share:4.0%} of the noise, scale {layer.noise_scale}")
for name, metric in noise.metrics.items():
    print(f"  {name:15} {metric.noise_scale}: {metric.use}")
