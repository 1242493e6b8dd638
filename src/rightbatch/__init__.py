"""rightbatch finds, explains and runs the right batch size for a PyTorch training job.

The names below are the whole public surface. They are imported when first used, so that
the command line can answer before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rightbatch.errors import (
        JobError,
        MissingExtraError,
        RightbatchError,
        RunFolderError,
        SettingError,
        UnidentifiedError,
    )
    from rightbatch.estimate import Estimate
    from rightbatch.feed.audit import FeedAudit, audit
    from rightbatch.feed.pairs import Pairs
    from rightbatch.feed.strata import Strata
    from rightbatch.feed.stream import BatchStream
    from rightbatch.feed.tokens import Tokens
    from rightbatch.fit.progress import StepsLaw, fit_steps
    from rightbatch.job import Job
    from rightbatch.largest import MemoryLaw, largest_batch
    from rightbatch.lint import Finding, Findings, check
    from rightbatch.loading import load_job
    from rightbatch.measure.one_shot import noise_scale
    from rightbatch.measure.record import Measurements
    from rightbatch.noise.monitor import NoiseMonitor
    from rightbatch.noise.scale import NoiseScale
    from rightbatch.plan.by_examples import ByExamples
    from rightbatch.plan.decide import Decision, decide
    from rightbatch.plan.exchange import AlongRate, InsteadOfDecay
    from rightbatch.plan.hyperparameters import Hyperparameters
    from rightbatch.plan.live import FollowNoise, SignalToNoise
    from rightbatch.plan.objective import Energy, Examples, Money, Time
    from rightbatch.plan.plan import Plan
    from rightbatch.plan.rate import Rate
    from rightbatch.plan.scaling import Scaling, scale_hyperparameters
    from rightbatch.plan.schedule import Anneal, Constant, Ramp, Stages
    from rightbatch.run.accumulate import Accumulator
    from rightbatch.run.controller import Controller
    from rightbatch.run.train import Run, train
    from rightbatch.step_law import token_law
    from rightbatch.tuning import Tuning, tune

_HOMES = {
    "lint": ("check", "Finding", "Findings"),
    "errors": (
        "JobError",
        "MissingExtraError",
        "RightbatchError",
        "RunFolderError",
        "SettingError",
        "UnidentifiedError",
    ),
    "estimate": ("Estimate",),
    "feed.audit": ("FeedAudit", "audit"),
    "feed.pairs": ("Pairs",),
    "feed.strata": ("Strata",),
    "feed.stream": ("BatchStream",),
    "feed.tokens": ("Tokens",),
    "fit.progress": ("StepsLaw", "fit_steps"),
    "job": ("Job",),
    "largest": ("MemoryLaw", "largest_batch"),
    "loading": ("load_job",),
    "measure.record": ("Measurements",),
    "measure.one_shot": ("noise_scale",),
    "noise.monitor": ("NoiseMonitor",),
    "noise.scale": ("NoiseScale",),
    "plan.by_examples": ("ByExamples",),
    "plan.decide": ("Decision", "decide"),
    "plan.exchange": ("AlongRate", "InsteadOfDecay"),
    "plan.hyperparameters": ("Hyperparameters",),
    "plan.live": ("FollowNoise", "SignalToNoise"),
    "plan.objective": ("Energy", "Examples", "Money", "Time"),
    "plan.plan": ("Plan",),
    "plan.rate": ("Rate",),
    "plan.scaling": ("Scaling", "scale_hyperparameters"),
    "plan.schedule": ("Anneal", "Constant", "Ramp", "Stages"),
    "run.accumulate": ("Accumulator",),
    "run.controller": ("Controller",),
    "run.train": ("Run", "train"),
    "step_law": ("token_law",),
    "tuning": ("Tuning", "tune"),
}
_ELSEWHERE = {  # public, but not among the names for everybody
    "BatchSampler": "feed.sampler",
    "Distinct": "feed.distinct",
    "Ledger": "feed.ledger",
    "ShardStream": "feed.shards",
    "StratumMeter": "feed.neyman",
    "Weighted": "feed.weighted",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Accumulator",
    "AlongRate",
    "Anneal",
    "BatchStream",
    "ByExamples",
    "Constant",
    "Controller",
    "Decision",
    "Energy",
    "Estimate",
    "Examples",
    "FeedAudit",
    "Finding",
    "Findings",
    "FollowNoise",
    "Hyperparameters",
    "InsteadOfDecay",
    "Job",
    "JobError",
    "Measurements",
    "MemoryLaw",
    "MissingExtraError",
    "Money",
    "NoiseMonitor",
    "NoiseScale",
    "Pairs",
    "Plan",
    "Ramp",
    "Rate",
    "RightbatchError",
    "Run",
    "RunFolderError",
    "Scaling",
    "SettingError",
    "SignalToNoise",
    "Stages",
    "StepsLaw",
    "Strata",
    "Time",
    "Tokens",
    "Tuning",
    "UnidentifiedError",
    "audit",
    "check",
    "decide",
    "fit_steps",
    "largest_batch",
    "load_job",
    "noise_scale",
    "scale_hyperparameters",
    "token_law",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOME:
        home = _ELSEWHERE.get(name)
        raise AttributeError(
            f"module 'rightbatch' has no attribute {name!r}"
            + (f": from rightbatch.{home} import {name}" if home else "")
        )
    value = getattr(importlib.import_module(f"rightbatch.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
