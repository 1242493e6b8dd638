"""The loss on a line or a plane through the space of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from rightbatch.core.errors import NotFiniteError, SettingError
from rightbatch.core.guards import evaluating, preserved_rng
from rightbatch.core.json_io import write_text
from rightbatch.core.random_state import seed_all
from rightbatch.core.real_number import real_number
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job, copied_module
from rightbatch.landscape.directions import filter_normalised, principal
from rightbatch.landscape.hessian import PROBE, drawn
from rightbatch.landscape.training_paths import Trajectory, weights
from rightbatch.training.batch_norm import running_norms

MARGIN = 0.15  # of a path's width, on either side of it [assumed]


@dataclass(frozen=True, eq=False)
class Walk:
    """A trajectory as it lies on a surface.

    ``places`` are its points, projected; ``losses`` those of the points themselves,
    which lie off the plane.
    """

    name: str
    examples: tuple[int, ...]
    places: Float64[np.ndarray, "points axes"]
    losses: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Surface:
    """Losses on a grid through weight space; `save` writes its page.

    Attributes:
        job: Name of the job.
        axes: Places along one axis or two: in units of each filter's length for random
            directions, else Euclidean distances from the middle of the trajectories.
        losses: Mean loss at each place, first axis first.
        probe: Examples the loss is a mean over, the same everywhere.
        walks: The trajectories on it.
        explained: Share of the trajectories' variance along each axis; empty for random
            directions.
        centre: Loss at the middle.
    """

    job: str
    axes: tuple[Float64[np.ndarray, " n"], ...]
    losses: Float64[np.ndarray, ...]
    probe: int
    walks: tuple[Walk, ...]
    explained: tuple[float, ...]
    centre: float

    def save(self, path: str | Path) -> Path:
        """Write one offline HTML page with the surface and the paths on it.

        Raises:
            RunFolderError: The folder cannot be written.
        """
        from rightbatch.landscape.surface_page import page

        write_text(Path(path), page(self))
        return Path(path)


def surface(
    job: Job,
    around: nn.Module | Trajectory | Sequence[Trajectory],
    *,
    dimensions: Literal[1, 2] = 2,
    reach: float = 1.0,
    points: int = 25,
    examples: int | None = None,
    seed: int = 0,
) -> Surface:
    """The loss around trained weights, or on the plane that training moved in.

    All losses are means over one set of examples, in eval mode, with the same random
    numbers. BatchNorm normalises by the examples looked at, a batch of the job at once,
    as in training: its averages belong to one place only. A copy is moved: the model
    stays as it is.

    Args:
        job: Gives loss and data.
        around: A model, along random filter-normalised directions (Li et al. 2018,
            arXiv:1712.09913); or trajectories, on their principal components.
        dimensions: 1 for a line, around a model only; 2 for a plane.
        reach: How far to go from a model: 1 moves every filter by its own length.
        points: Places along each axis.
        examples: To take the loss on; default 512, or all.
        seed: Of the directions and of the choice of examples.

    Raises:
        SettingError: More examples than the data set has, or no sense in a setting.
        UnidentifiedError: The trajectories span fewer dimensions.
        NotFiniteError: The loss in the middle is NaN or infinite.

    Example:
        >>> import rightbatch as rb
        >>> job = rb.load_job("digits")
        >>> line = surface(job, job.make_model(), dimensions=1, points=5, examples=64)
        >>> line.losses.shape
        (5,)
    """
    of_model = isinstance(around, nn.Module)
    if dimensions not in ((1, 2) if of_model else (2,)):
        fix = "dimensions=2, or 1 around a model"
        raise SettingError(f"dimensions={dimensions} cannot be drawn", fix=fix)
    points = whole_number(points, "points", least=3)
    reach = real_number(reach, "reach", positive=True)
    count = min(PROBE, job.length) if examples is None else examples
    chosen = drawn(job, count, "examples", seed)
    generator = torch.Generator().manual_seed(seed)
    walked = [around] if isinstance(around, Trajectory) else around
    walked = () if isinstance(walked, nn.Module) else tuple(walked)
    with preserved_rng():
        if isinstance(around, nn.Module):
            model = copied_module(around)
            seen = weights(model)[None]
        else:
            model = job.make_model()
            seen = _together(model, walked)
        middle = seen.mean(0)
        loss_at = _Probe(job, model, chosen, seed)
        centre = loss_at(middle)
        if not math.isfinite(centre):
            raise NotFiniteError(
                "the loss in the middle of the surface is not finite",
                seen=f"{centre} over {count} examples",
                fix="weights from before the run diverged",
            )
        if walked:
            directions, coordinates, explained = principal(seen, dimensions)
            places = coordinates.numpy()
            axes = tuple(_wide(column, points) for column in places.T)
        else:
            parameters = list(model.parameters())
            axes = (np.linspace(-reach, reach, points),) * dimensions
            directions = torch.stack(
                [filter_normalised(parameters, generator) for _ in axes]
            )
            explained, places = (), np.zeros((0, dimensions))
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        flat = torch.from_numpy(grid.reshape(-1, dimensions)).to(middle.dtype)
        losses = np.array([loss_at(middle + row @ directions) for row in flat])
        ends = np.cumsum([len(t.examples) for t in walked])[:-1]
        walks = tuple(
            Walk(t.name, t.examples, at, tuple(loss_at(row) for row in t.points))
            for t, at in zip(walked, np.split(places, ends), strict=False)
        )
    losses = losses.reshape(grid.shape[:-1])
    return Surface(job.name, axes, losses, count, walks, explained, centre)


def _wide(column: Float64[np.ndarray, " n"], points: int) -> Float64[np.ndarray, " m"]:
    low, high = column.min(), column.max()
    edge = MARGIN * (high - low)
    return np.linspace(low - edge, high + edge, points)


def _together(model: nn.Module, walked: Sequence[Trajectory]) -> Float[Tensor, "n d"]:
    """All points."""
    size = weights(model).numel()
    if not walked or any(t.points.shape[1] != size for t in walked):
        raise SettingError(
            "these are no trajectories of the job's model",
            seen=f"{[t.points.shape[1] for t in walked]} parameters, not {size}",
            fix="rb.landscape.trajectories(job, (16, 64), examples=...)",
        )
    return torch.cat([t.points for t in walked])


class _Probe:
    """The mean loss over fixed examples, at any weights."""

    def __init__(self, job: Job, model: nn.Module, chosen: Tensor, seed: int) -> None:
        self.job, self.model, self.seed = job, model, seed
        self.parameters = list(model.parameters())
        self.device = self.parameters[0].device
        seed_all(seed)  # of a data set that draws
        # A job's loss may compare the examples of a batch: so many as in its own.
        parts = chosen.split(job.batch_size)
        # BatchNorm cannot normalise one example by itself.
        parts = parts[:-1] if len(parts) > 1 and len(parts[-1]) == 1 else parts
        self.batches = [(len(part), job.batch(part, self.device)) for part in parts]

    def __call__(self, row: Float[Tensor, " d"]) -> float:
        sizes = [p.numel() for p in self.parameters]
        total = counted = 0.0
        with evaluating(self.model):
            for norm in running_norms(self.model):
                norm.train()
            seed_all(self.seed)  # the same numbers for a loss that draws some
            for p, part in zip(self.parameters, row.split(sizes), strict=True):
                p.copy_(part.view_as(p))
            for size, batch in self.batches:
                loss, terms = self.job.mean_loss(self.model, batch)
                total += float(loss) * (size if terms is None else 1.0)
                counted += size if terms is None else float(terms)
        return total / counted if counted else math.nan
