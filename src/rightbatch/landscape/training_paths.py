"""The way weights take in training, batch size by batch size."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rightbatch.core.errors import NotFiniteError, SettingError
from rightbatch.core.guards import preserved_rng
from rightbatch.core.units import show_number
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job
from rightbatch.job.optimizers import first_rate
from rightbatch.schedules.scaling import scale_hyperparameters
from rightbatch.training.run_state import RunState


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Weights that were kept along one run.

    Attributes:
        name: Such as ``"B = 16, lr 0.05"``.
        examples: Seen at each point.
        points: The weights there, all parameters in one row, on the CPU.
        diverged: Whether it ended since its loss was no longer finite.
    """

    name: str
    examples: tuple[int, ...]
    points: Float[Tensor, "points d"]
    diverged: bool = False


def trajectories(
    job: Job,
    batch_sizes: Sequence[int] = (16, 256),
    *,
    examples: int,
    points: int = 20,
) -> tuple[Trajectory, ...]:
    """Train a job from the same weights and seed with several batch sizes.

    The optimizer's numbers follow the batch as by `rightbatch.scale_hyperparameters`.

    Args:
        job: What is trained, by its own recipe.
        batch_sizes: Examples per step, one run each.
        examples: That each run sees; whole steps, so it may see up to one batch more.
        points: Weights kept in memory of each run beside the first, evenly in examples.

    Raises:
        JobError: The job cannot be trained.
        SettingError: An argument makes no sense.

    Example:
        >>> import rightbatch as rb
        >>> small, large = trajectories(rb.load_job("digits"), (16, 64), examples=640)
        >>> large.name, tuple(large.points.shape), large.examples[-1]
        ('B = 64, lr 0.2', (11, 85002), 640)
    """
    end, count = whole_number(examples, "examples"), whole_number(points, "points")
    sizes = [whole_number(size, "batch_sizes") for size in batch_sizes]
    if max(sizes, default=1) > job.length:
        raise SettingError(
            "a batch is larger than the data set",
            seen=f"B = {max(sizes):,}, {job.length:,} examples",
            fix=f"batch_sizes up to {job.length:,}",
        )
    with preserved_rng():
        return tuple(_trained(job, size, end, count) for size in sizes)


def _trained(job: Job, size: int, examples: int, points: int) -> Trajectory:
    run = RunState.start(job, alone=True)
    with contextlib.closing(run):
        scale_hyperparameters(run.optimizer, batch_from=job.batch_size, batch_to=size)
        run.split(size)
        base = first_rate(run.optimizer)
        lr = "no lr" if base is None else f"lr {show_number(base)}"
        seen, kept, diverged = [0], [weights(run.network)], False
        while run.examples < examples and not diverged:
            try:
                run.step()
            except NotFiniteError:
                diverged = True
            due = len(kept) * examples / points
            if run.examples >= min(due, examples) and run.examples > seen[-1]:
                seen.append(run.examples)
                kept.append(weights(run.network))
        return Trajectory(
            name=f"B = {size}, {lr}" + (", diverged" if diverged else ""),
            examples=tuple(seen),
            points=torch.stack(kept),
            diverged=diverged,
        )


def weights(model: nn.Module) -> Float[Tensor, " d"]:
    """All parameters in one row, copied to the CPU."""
    return torch.cat([p.detach().float().cpu().flatten() for p in model.parameters()])
