"""Noise from a file that `NoiseMonitor.save` wrote, as points of a run."""

from __future__ import annotations

from pathlib import Path

from rightbatch.core.errors import RunFolderError, UnidentifiedError
from rightbatch.core.json_io import read_json
from rightbatch.measure.measurements import NoisePoint
from rightbatch.noise.saved_noise import FORMAT, NoiseReading, SavedNoise
from rightbatch.noise.statistics.moments import ratio

METRIC = "adam_curvature"  # what `measure_noise` takes for the optimizer's own
LEAST_POINTS = 2  # along a run, for a law of it


def load_noise(path: str | Path) -> tuple[NoisePoint, ...]:
    """The noise along a real run, as a `NoiseMonitor` saved it.

    Args:
        path: What ``monitor.save(path)`` wrote.

    Returns:
        Points in the order of the run, evenly spread over the examples it saw.

    Raises:
        RunFolderError: Missing, damaged, or of another format.
        UnidentifiedError: Fewer than 2 readings.

    Example:
        >>> import math, tempfile, torch, rightbatch as rb
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = rb.NoiseMonitor(model, optimizer, overhead=math.inf)
        >>> for _ in range(20):
        ...     x = torch.randn(16, 3)
        ...     (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     monitor.save(f"{folder}/noise.json")
        ...     points = load_noise(f"{folder}/noise.json")
        >>> len(points), points[0].groups, points[0].group_size
        (5, 4, 16)
    """
    return points_of(load_saved_noise(path), path)


def load_saved_noise(path: str | Path) -> SavedNoise:
    """The file as it is, with what is known of its run.

    Raises:
        RunFolderError: Missing, damaged, or of another format.
    """
    try:
        return read_json(path, SavedNoise, FORMAT)
    except RunFolderError as error:
        raise RunFolderError(
            error.what,
            seen=error.seen,
            why=error.why,
            fix="a file that monitor.save(path) of a rightbatch.NoiseMonitor wrote",
        ) from error


def points_of(saved: SavedNoise, path: str | Path) -> tuple[NoisePoint, ...]:
    """The readings as points.

    Raises:
        UnidentifiedError: Fewer than 2.
    """
    if len(saved.readings) < LEAST_POINTS:
        measured = sum(reading.samples for reading in saved.readings)
        raise UnidentifiedError(
            f"{path} holds too little noise to judge a run by",
            seen=f"{measured} measured steps of {saved.steps:,}",
            why="a law of the run needs it at two points at least",
            fix="save later in the run, or NoiseMonitor(..., overhead=0.1)",
        )
    return tuple(_point(reading) for reading in saved.readings)


def _point(reading: NoiseReading) -> NoisePoint:
    examples = reading.samples * reading.batch_size
    return NoisePoint(
        step=reading.step,
        examples=reading.examples,
        loss=None,
        groups=reading.samples,
        group_size=reading.batch_size,
        noise_scale=ratio(
            reading.plain,
            samples=reading.samples,
            n=examples,
            method=f"{reading.samples} steps of a NoiseMonitor, Fieller",
        ),
        plain=reading.plain,
        preconditioned=reading.metrics.get(METRIC),
    )
