"""The sharpness of the training loss at one point, in one call."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from rightbatch.core.estimate import Estimate
from rightbatch.core.real_number import real_number
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job
from rightbatch.landscape.hessian import (
    PROBE,
    TINY,
    Hessian,
    Method,
    Mode,
    drawn,
    hessian_of,
    in_memory,
)
from rightbatch.landscape.sharpness_reading import (
    ADAPTIVE_NOISE,
    SAM_RADIUS,
    Sharpness,
)
from rightbatch.landscape.spectrum import top_eigenvalues, trace_of
from rightbatch.noise.norms import norm
from rightbatch.noise.statistics.moments import mean_estimate

DRAWS = 8  # of weights, each added and subtracted, for the adaptive rise [assumed]


def sharpness(
    job: Job,
    model: nn.Module | None = None,
    *,
    examples: int | None = None,
    top: int = 1,
    precision: float = 0.05,
    most_probes: int = 100,
    mode: Mode = "eval",
    method: Method | None = None,
    micro_batch: int | None = None,
    seed: int = 0,
) -> Sharpness:
    """Measure the curvature of the training loss at the weights of a model.

    Over one fixed set of examples, the same at every call with one seed: on a run's
    own mini-batches a smaller batch would look sharper by itself. Weights, buffers,
    modes, gradients and random numbers are as before; frozen parameters are left out.

    Args:
        job: Gives the loss and the data.
        model: At the weights to look at; default the job's initial ones.
        examples: How many; default 512, or all where there are fewer.
        top: How many of the largest eigenvalues.
        precision: Standard error of the trace over the trace that is asked for.
        most_probes: Random vectors at most for that.
        mode: ``"eval"``, where BatchNorm and dropout stay out of it, or ``"train"``.
        method: ``"double backward"`` or ``"differences"``; default: the first, or the
            second where a kernel of torch has no second derivative (attention on the
            CPU, unless the loss runs under ``sdpa_kernel(SDPBackend.MATH)``). At kinks
            (ReLU) differences see the jumps of the gradient as curvature too.
        micro_batch: Most examples in memory, and in touch (BatchNorm in train mode,
            contrastive losses), at once; default all, halved while a GPU's memory runs
            out. On a CPU the system may end the process instead: say it there.
        seed: Of the examples and of all that is drawn.

    Raises:
        JobError: The loss has no second derivative, or the job's code raised.
        NotFiniteError: Loss, gradient or curvature is NaN or infinite.
        SettingError: There are not so many examples, or a setting makes no sense.
        UnidentifiedError: The eigenvalues did not converge.

    Example:
        >>> import rightbatch as rb
        >>> from rightbatch.landscape import sharpness
        >>> point = sharpness(rb.load_job("digits"), examples=64, most_probes=8)
        >>> 0 < point.sam.value < point.top.value
        True
    """
    count = min(PROBE, job.length) if examples is None else examples
    seed = whole_number(seed, "seed", least=0)
    indices = drawn(job, count, "examples", seed)
    precision = real_number(precision, "precision", positive=True)
    top, most = whole_number(top, "top"), whole_number(most_probes, "most_probes", 2)

    def measured(micro: int) -> Sharpness:
        with hessian_of(
            job, model, indices, micro, mode=mode, method=method, seed=seed
        ) as hessian:
            largest = top_eigenvalues(hessian, top, seed=seed)
            trace = trace_of(
                hessian, largest, precision=precision, most=most, seed=seed
            )
            uphill = hessian.gradient / norm(hessian.gradient).clamp_min(TINY)
            sam = hessian.loss_at(SAM_RADIUS * uphill) - hessian.loss
            adaptive = _adaptive(hessian, seed)
        notes = []
        if trace.wanted > trace.probes:
            notes.append(
                f"{precision:.1%} of the trace takes {trace.wanted:,} random vectors, "
                f"{trace.probes} were made"
            )
        if hessian.frozen:
            notes.append(f"{hessian.frozen:,} frozen parameters are left out")
        return Sharpness(
            job=job.name,
            loss=hessian.loss,
            eigenvalues=largest.eigenvalues,
            trace=trace.estimate,
            trace_error=trace.standard_error,
            sam=Estimate.exact(sam),
            adaptive=adaptive,
            examples=count,
            population=job.length,
            probe=hessian.examples,
            mode=mode,
            micro_batch=micro,
            method=hessian.method,
            passes=dict(hessian.passes),
            notes=tuple(notes),
        )

    return in_memory(measured, count, micro_batch)


def _adaptive(hessian: Hessian, seed: int) -> Estimate:
    """The mean rise of the loss under noise in proportion to every weight."""
    generator = torch.Generator().manual_seed(seed)
    flat = [p.detach().reshape(-1).to(hessian.gradient) for p in hessian.parameters]
    weights, rises = ADAPTIVE_NOISE * torch.cat(flat), []
    for _ in range(DRAWS):
        shift = weights * torch.randn(hessian.size, generator=generator).to(weights)
        both = hessian.loss_at(shift) + hessian.loss_at(-shift)  # the slope cancels
        rises.append(both / 2 - hessian.loss)
    return mean_estimate(
        float(np.mean(rises)),
        float(np.var(rises, ddof=1)) / DRAWS,
        samples=DRAWS,
        method=f"{DRAWS} pairs of draws",
    )
