"""A job of one's own: tumours told apart from 30 measurements of cell nuclei.

rightbatch check examples/own_job.py
rightbatch tune examples/own_job.py --budget 20
rightbatch train examples/own_job.py --plan runs/…/plan.json
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.utils.data import Dataset

import rightbatch as rb


class Nuclei(Dataset):
    """569 real examples; every fifth is held out."""

    def __init__(self, held_out: bool) -> None:
        x, y = load_breast_cancer(return_X_y=True)
        features = torch.tensor(x, dtype=torch.float32)
        features = (features - features.mean(0)) / features.std(0)
        chosen = (torch.arange(len(features)) % 5 == 0) == held_out
        self.features = features[chosen]
        self.labels = torch.tensor(y, dtype=torch.float32)[chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.features[i], self.labels[i]


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 1))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    features, labels = batch
    return F.binary_cross_entropy_with_logits(model(features).squeeze(1), labels)


held_out = Nuclei(held_out=True)


def evaluate(model: nn.Module) -> float:
    return float(loss(model, (held_out.features, held_out.labels)))


job = rb.Job(
    model=make_model,
    loss=loss,
    data=Nuclei(held_out=False),
    optimizer=lambda params: torch.optim.Adam(params, lr=1e-3),
    batch_size=32,
    evaluate=evaluate,
    target=0.1,
    example="patient",
)
