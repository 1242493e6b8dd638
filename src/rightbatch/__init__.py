"""rightbatch finds, explains and runs the right batch size for a PyTorch training job.

The names below, and those of `coupling`, `data`, `integrations`, `lab`, `landscape`,
`objectives`, `schedules` and `sweep`, are the whole public surface. They are imported
when first used, so that the command line can answer before torch is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from rightbatch import coupling as coupling
    from rightbatch import data as data
    from rightbatch import integrations as integrations
    from rightbatch import lab as lab
    from rightbatch import landscape as landscape
    from rightbatch import schedules as schedules
    from rightbatch import sweep as sweep
    from rightbatch.core.errors import (
        JobError,
        MissingExtraError,
        NotFiniteError,
        RightbatchError,
        RunFolderError,
        SettingError,
        UnidentifiedError,
        UpdateOutOfMemoryError,
    )
    from rightbatch.core.estimate import Estimate
    from rightbatch.data.audit.audit import audit
    from rightbatch.data.loading.stream import BatchStream
    from rightbatch.fit.steps_law import StepsLaw, fit_steps
    from rightbatch.integrations.loading import load_job
    from rightbatch.job.job import Job
    from rightbatch.lint.linter import check
    from rightbatch.measure.measurements import Measurements
    from rightbatch.memory.largest_batch import MemoryLaw, largest_batch
    from rightbatch.noise.monitor import NoiseMonitor
    from rightbatch.noise.statistics.scale import NoiseScale
    from rightbatch.plan import objectives as objectives
    from rightbatch.plan.decide import decide
    from rightbatch.schedules.scaling import scale_hyperparameters
    from rightbatch.training.accumulator import Accumulator
    from rightbatch.training.controller import Controller
    from rightbatch.training.plan import Plan
    from rightbatch.training.train import Run, train
    from rightbatch.tuning.find_batch_size import find_batch_size
    from rightbatch.tuning.noise_scale import noise_scale
    from rightbatch.tuning.tune import Tuning, tune

__all__ = [
    "Accumulator",
    "BatchStream",
    "Controller",
    "Estimate",
    "Job",
    "JobError",
    "Measurements",
    "MemoryLaw",
    "MissingExtraError",
    "NoiseMonitor",
    "NoiseScale",
    "NotFiniteError",
    "Plan",
    "RightbatchError",
    "Run",
    "RunFolderError",
    "SettingError",
    "StepsLaw",
    "Tuning",
    "UnidentifiedError",
    "UpdateOutOfMemoryError",
    "audit",
    "check",
    "coupling",
    "data",
    "decide",
    "find_batch_size",
    "fit_steps",
    "integrations",
    "lab",
    "landscape",
    "largest_batch",
    "load_job",
    "noise_scale",
    "objectives",
    "scale_hyperparameters",
    "schedules",
    "sweep",
    "train",
    "tune",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "core.errors": (
            "JobError",
            "MissingExtraError",
            "NotFiniteError",
            "RightbatchError",
            "RunFolderError",
            "SettingError",
            "UnidentifiedError",
            "UpdateOutOfMemoryError",
        ),
        "core.estimate": ("Estimate",),
        "data.audit.audit": ("audit",),
        "data.loading.stream": ("BatchStream",),
        "fit.steps_law": (
            "StepsLaw",
            "fit_steps",
        ),
        "job.job": ("Job",),
        "integrations.loading": ("load_job",),
        "lint.linter": ("check",),
        "tuning.find_batch_size": ("find_batch_size",),
        "tuning.noise_scale": ("noise_scale",),
        "measure.measurements": ("Measurements",),
        "memory.largest_batch": (
            "MemoryLaw",
            "largest_batch",
        ),
        "noise.monitor": ("NoiseMonitor",),
        "noise.statistics.scale": ("NoiseScale",),
        "plan.decide": ("decide",),
        "training.plan": ("Plan",),
        "schedules.scaling": ("scale_hyperparameters",),
        "training.accumulator": ("Accumulator",),
        "training.controller": ("Controller",),
        "training.train": (
            "Run",
            "train",
        ),
        "tuning.tune": (
            "Tuning",
            "tune",
        ),
        "coupling": ("coupling.",),
        "data": ("data.",),
        "integrations": ("integrations.",),
        "lab": ("lab.",),
        "landscape": ("landscape.",),
        "plan.objectives": ("objectives.",),
        "schedules": ("schedules.",),
        "sweep": ("sweep.",),
    },
)
