"""The noise of a training loop in the logger that is already there: two lines are ours.

Here that is TensorBoard; a run of W&B, Trackio or MLflow is found without ``to=``.

python examples/log_noise.py
"""

import math
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

import rightbatch as rb
from rightbatch.integrations import loggers

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
folder = tempfile.mkdtemp(prefix="noise-")
writer = SummaryWriter(folder)

# A step takes half a millisecond here, of which 2 % (the default) buy few measurements.
monitor = rb.NoiseMonitor(model, optimizer, math.inf, population=len(x))  # 1

BATCH = 32
for epoch in range(6):
    for index in torch.randperm(len(x)).split(BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[index]), y[index])
        loss.backward()
        optimizer.step()
    sent = loggers.log(monitor, to=writer)  # 2
    print(f"epoch {epoch + 1}  noise scale {sent['noise/scale']:6.0f} examples")

writer.close()
print(f"tensorboard --logdir {folder}")
