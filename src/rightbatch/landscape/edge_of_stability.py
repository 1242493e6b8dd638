"""Batch sharpness: the curvature that mini-batch gradients meet along themselves."""

from __future__ import annotations

import numpy as np
from torch import nn

from rightbatch.core.estimate import Estimate
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job
from rightbatch.landscape.hessian import Mode, drawn, hessian_of, in_memory
from rightbatch.noise.statistics.moments import ratio, sampled_moments


def batch_sharpness(
    job: Job,
    model: nn.Module | None = None,
    *,
    batch_size: int | None = None,
    batches: int = 32,
    mode: Mode = "train",
    micro_batch: int | None = None,
    seed: int = 0,
) -> Estimate:
    r"""Batch sharpness $E_B[g_B^T H_B g_B] / E_B[|g_B|^2]$ at the weights of a model.

    Along a long run of SGD at a constant rate $\eta$ it rises to $2/\eta$ and stays
    there (Andreyev & Beneventano 2024, arXiv:2412.20553), while the top eigenvalue of
    the full loss stays the lower the smaller the batch. With momentum $\beta$ it stays
    at $2(1-\beta)/\eta$ for small batches and at $2(1+\beta)/\eta$ for large ones
    (arXiv:2604.14108): at .9 these are 19 times apart.

    Args:
        job: Gives the loss and the data.
        model: At the weights to look at, left untouched; default the initial ones.
        batch_size: Examples in a batch; default the job's.
        batches: How many, each drawn anew without replacement.
        mode: Of the model; the gradient that training follows is ``"train"``'s.
        micro_batch: Most examples in memory at once, see `sharpness`.
        seed: Of the batches and of all that is drawn.

    Returns:
        The ratio of both means with Fieller's interval; 0 where it is negative.

    Raises:
        JobError: The loss has no second derivative, or the job's code raised.
        NotFiniteError: Loss, gradient or curvature is NaN or infinite.
        SettingError: The batch is larger than the data set.

    Example:
        >>> import rightbatch as rb
        >>> from rightbatch.landscape import batch_sharpness
        >>> at_start = batch_sharpness(rb.load_job("digits"), batch_size=16, batches=8)
        >>> at_start.low < at_start.value < at_start.high
        True
    """
    size = job.batch_size if batch_size is None else batch_size
    count = whole_number(batches, "batches", least=3)
    seed = whole_number(seed, "seed", least=0)
    draws = [drawn(job, size, "batch_size", seed * count + i) for i in range(count)]

    def measured(micro: int) -> Estimate:
        squares, curvatures = np.zeros(count), np.zeros(count)
        for i, indices in enumerate(draws):
            draw = seed * count + i  # also of dropout's mask
            with hessian_of(
                job, model, indices, micro, mode=mode, seed=draw
            ) as hessian:
                gradient = hessian.gradient.double()
                product = hessian.product(hessian.gradient).double()
                squares[i], curvatures[i] = gradient @ gradient, gradient @ product
        return ratio(
            sampled_moments(squares, curvatures, np.ones(count)),
            samples=count,
            n=count * size,
            method=f"{count} batches of {size}, Fieller",
            unit="",
        )

    return in_memory(measured, size, micro_batch)
