"""Lightning Fabric: the loop is yours, so the batch may change at any step.

    python examples/fabric_loop.py

Gradients of a step are exchanged once, with its last micro-batch; weighted by `share`,
they are the mean over the batch, however it was cut.
"""

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import rightbatch as rb

fabric = lightning.Fabric()
fabric.launch()
fabric.seed_everything(0)
digits = load_digits()
data = (
    torch.tensor(digits.data / 16, dtype=torch.float32),
    torch.tensor(digits.target),
)
net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
model, optimizer = fabric.setup(net, sgd)

ramp = rb.schedules.Ramp(32, 256, 8 * len(digits.target))
stream = rb.BatchStream(data, ramp.start, seed=0, micro_batch=32)
monitor = rb.NoiseMonitor(net, sgd, stream=stream)
controller = rb.Controller(ramp, sgd, 32, stream=stream, monitor=monitor)

seen = 0
while stream.epoch < 10:
    for step in stream.steps():
        total = 0.0
        for number, micro in enumerate(step, start=1):
            inputs, labels = fabric.to_device(micro.data)
            with fabric.no_backward_sync(model, enabled=number < len(step)):
                loss = F.cross_entropy(model(inputs), labels) * micro.share
                fabric.backward(loss)
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        seen += step.examples
        if change := controller(seen):
            fabric.print(change)
    fabric.log_dict(monitor.log(), step=stream.step)  # to whatever loggers it has
fabric.print(monitor.read())
fabric.print(f"{seen} examples in {stream.step} steps, loss {total:.3f}")
