"""A stand-in for ``evaluate``: the loss on examples that nothing trains on."""

from __future__ import annotations

import torch
from torch import nn

from rightbatch.core.guards import evaluating
from rightbatch.training.run_state import RunState


def held_out_loss(
    run: RunState, indices: torch.Tensor, at_once: int | None = None
) -> float:
    """The mean loss, in eval mode, over the examples at ``indices``; on all ranks.

    So many ``at_once``; default: the job's batch.
    """
    job = run.job
    most = job.batch_size if at_once is None else at_once

    def mean_loss(model: nn.Module) -> float:
        total = 0.0
        with evaluating(model):
            for part in indices.split(min(len(indices), most)):
                loss, n = job.mean_loss(model, job.batch(part, run.device))
                total += float(loss) / (float(n or 0) or 1.0) * len(part)
        return total / len(indices)

    return run.on_first(mean_loss)


def metric_of(run: RunState, held_out: torch.Tensor | None) -> float:
    """The loss on held-out examples; the job's ``evaluate`` where there are none.

    Raises:
        JobError: The job's code failed.
    """
    metric = run.evaluated() if held_out is None else held_out_loss(run, held_out)
    assert metric is not None, "without held-out examples there is an evaluate"
    return metric
