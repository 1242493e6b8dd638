"""Whether BatchNorm layers are all that makes the examples of a batch touch."""

from __future__ import annotations

from torch import nn

from rightbatch.core.errors import JobError
from rightbatch.core.torch_private import BatchNorm
from rightbatch.coupling.norm_conversion import convert_norms
from rightbatch.coupling.probe import ALLOWANCE_S, find_coupling
from rightbatch.job.job import Job


def batch_norm_alone(
    job: Job, model: nn.Module, *, allowance_s: float = ALLOWANCE_S
) -> bool:
    """Whether examples do not touch once each BatchNorm is a layer normalisation.

    Then batches of any number of groups that are normalised each by itself (see
    `GhostBatchNorm`) are the same function. False where that cannot be seen: the job
    cannot be probed, a layer cannot be replaced, or is a BatchNorm of another kind.

    Args:
        job: Probed with nineteen forward passes of a few examples.
        model: The job's, in the mode it trains in; as before afterwards.
        allowance_s: See `find_coupling`.

    Example:
        >>> import rightbatch as rb
        >>> job = rb.load_job("digits")
        >>> batch_norm_alone(job, job.make_model())  # it has none
        False
    """
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    if any(type(norm).forward is not BatchNorm.forward for norm in norms):
        return False
    try:
        conversion = convert_norms(model, "layer")
    except JobError:
        return False
    try:
        coupling = find_coupling(job, model, allowance_s=allowance_s)
    finally:
        conversion.undo()
    return not coupling.kind and not coupling.by_type
