"""The noise of pairs where the loss compares examples, and the batch it speaks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from rightbatch.core.errors import JobError, UnidentifiedError
from rightbatch.coupling.contrastive_batch import StepCost, optimal_contrastive_batch
from rightbatch.coupling.pairwise_noise import LEAST_BLOCKS, noise_of_blocks
from rightbatch.job.loss import PRECISIONS
from rightbatch.measure.measurements import PairPoint
from rightbatch.measure.noise import KEPT_BYTES
from rightbatch.training.run_state import RunState

APART = 8  # the larger sub-batches over the smaller [assumed]
LEAST_SIZE = 4  # examples in the smaller ones: with fewer hardly any compares [assumed]
BLOCKS = 8  # a narrower interval is not worth the time: the optimum is flat [assumed]


def measure_pairs(
    run: RunState,
    sizes: Sequence[int],
    seconds: Callable[[float], float],
    budget_s: float,
) -> PairPoint | None:
    """V1 and V2 where a run stands, in the optimizer's metric, and the best batch.

    Sub-batches are drawn from the whole data set, each block by itself; the largest
    are of half the data set at most.

    Args:
        run: On one rank; it stays where it is.
        sizes: Batches whose steps were timed.
        seconds: The law of step time.
        budget_s: Seconds it may take.

    Returns:
        None where no sizes fit data, budget and memory, the gradient's signal is not
        seen, or the loss fails on sub-batches.
    """
    job = run.job
    gradient_bytes = sum(p.numel() * p.element_size() for p in run.parameters)
    if 2 * BLOCKS * gradient_bytes > KEPT_BYTES:  # two for each block are kept
        return None
    most = min(max(sizes), job.length // 2)
    small = 2 ** int(math.log2(max(most // APART, 1)))
    while small >= LEAST_SIZE:
        block_s = seconds(APART * small) + APART * seconds(small)
        blocks = min(BLOCKS, int(budget_s / block_s))
        if blocks >= LEAST_BLOCKS:
            break
        small //= 2
    else:
        return None
    generator = torch.Generator().manual_seed(job.seed + 2)
    large = APART * small
    batches = (
        job.batch(torch.randperm(job.length, generator=generator)[:large], run.device)
        for _ in range(blocks)
    )
    try:
        noise = noise_of_blocks(
            run.network,
            job.loss,
            batches,
            blocks,
            sizes=(small, large),
            optimizer=run.optimizer,
            dtype=PRECISIONS[job.precision],
        )
    except (UnidentifiedError, JobError):
        return None
    cost = StepCost.fit(sizes, [seconds(b) for b in sizes])
    best = optimal_contrastive_batch(noise, cost, most=job.length)
    return PairPoint(
        step=run.steps, v1=noise.v1, v2=noise.v2, batch_size=best.batch_size
    )
