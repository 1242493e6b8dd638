"""A loop with Hugging Face Accelerate: a batch that grows, noise logged, saved whole.

python examples/accelerate_loop.py   (or: accelerate launch examples/accelerate_loop.py)
"""

import tempfile

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb
from rightbatch.integrations.accelerate import follow

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
data = TensorDataset(x, torch.tensor(digits.target))

torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
# 8 on every rank at once; what does not fill a micro-batch is left out.
loader = DataLoader(data, batch_size=8, shuffle=True, drop_last=True)
# Its 560 steps are meant for batch 16: here they end with as many examples.
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=560)
model, optimizer, loader, scheduler = accelerator.prepare(
    model, optimizer, loader, scheduler
)
batches = follow(
    accelerator,
    optimizer,
    rb.schedules.Stages(((0, 16), (2_000, 32), (5_000, 64))),
    loader=loader,
    batch_size=16,  # what the learning rate was chosen for
    scheduler=scheduler,
    # 2 % of the time by default: too little in a run of a few seconds.
    monitor=rb.NoiseMonitor(model, optimizer, overhead=0.2),
)
for _ in range(5):
    for inputs, labels in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            accelerator.backward(loss)
            optimizer.step()
            if change := batches.step():  # in place of scheduler.step()
                accelerator.print(change)
            optimizer.zero_grad()
    accelerator.log(batches.log())  # to whatever Accelerator(log_with=...) names
    accelerator.save_state(tempfile.mkdtemp())  # with batch, rate and noise
for name, number in batches.log().items():
    accelerator.print(f"{name:20} {number:.4g}")
