"""A LightningModule: its noise measured, its batch growing, in two lines.

    python examples/lightning_module.py
    rightbatch tune examples/lightning_module.py:module    # which batch, which rate?

The loader gives micro-batches of 16; a step takes two of them, then up to 16.
"""

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import rightbatch as rb
from rightbatch.integrations.lightning import Callback

digits = load_digits()
rows = TensorDataset(
    torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
)
train, held_out = random_split(rows, [0.8, 0.2], torch.Generator().manual_seed(0))


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train_dataloader(self):
        return DataLoader(train, batch_size=16, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(held_out, batch_size=128)


lightning.seed_everything(0)
module = Digits()

if __name__ == "__main__":
    ramp = rb.schedules.Ramp(32, 256, 8 * len(train))
    follow = Callback(schedule=ramp)
    quiet = {"logger": False, "callbacks": [follow]}
    trainer = lightning.Trainer(max_epochs=10, accumulate_grad_batches=2, **quiet)
    trainer.fit(module)
    print("", *follow.controller.changes, follow.monitor.read(), sep="\n")
    print(f"val_loss {trainer.callback_metrics['val_loss']:.3f}")
