"""A job by its name, where that may also be another library's trainer."""

from __future__ import annotations

import importlib
from typing import Any

from rightbatch.job.job import Job
from rightbatch.job.loading import as_job, load_named

# Classes of other libraries that describe a job, by their names: so that none of those
# libraries is imported to look. Each file has a function ``job``.
TRAINERS = {
    "transformers.trainer.Trainer": "transformers",
    "lightning.pytorch.core.module.LightningModule": "lightning",
    "pytorch_lightning.core.module.LightningModule": "lightning",
}


def load_job(text: str) -> Job:
    """Load a job by name: built-in, ``file.py:name`` or ``package.module:name``.

    The name may be a `Job`, a Hugging Face ``Trainer``, a ``LightningModule`` that has
    its own ``train_dataloader``, or a function without arguments that returns one.

    Args:
        text: Such as ``"digits"`` or ``"train.py:job"``; ``:job`` may be left out.

    Raises:
        SettingError: Nothing of that name exists.
        JobError: The code raised while it was imported (its line is given), or the
            name is no job.

    Example:
        >>> load_job("digits").batch_size
        16
    """
    return as_job(text, described(load_named(text)))


def described(made: Any) -> Any:
    """The `Job` that another library's trainer describes; anything else as it is."""
    names = {f"{c.__module__}.{c.__qualname__}" for c in type(made).__mro__}
    place = next((TRAINERS[name] for name in names if name in TRAINERS), None)
    if place is None:
        return made
    return importlib.import_module(f"rightbatch.integrations.{place}").job(made)
