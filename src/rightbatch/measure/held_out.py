"""A stand-in for ``evaluate``: the loss on examples that nothing trains on."""

from __future__ import annotations

import torch

from rightbatch.core.guards import evaluating
from rightbatch.training.training import Training


def held_out_loss(training: Training, indices: torch.Tensor) -> float:
    """The mean loss, in eval mode, over the examples at ``indices``."""
    job, total = training.job, 0.0
    with evaluating(training.model):
        for part in indices.split(min(len(indices), job.batch_size)):
            batch = job.batch(part, training.device)
            loss, n = job.mean_loss(training.model, batch)
            total += float(loss) / (float(n or 0) or 1.0) * len(part)
    return total / len(indices)
