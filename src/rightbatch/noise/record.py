"""What a monitor has measured so far, and as plain numbers for a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rightbatch.core.errors import SettingError
from rightbatch.noise.statistics.course import PLAIN, Course
from rightbatch.noise.statistics.history import History
from rightbatch.noise.statistics.samples import Sample


@dataclass
class Counts:
    """What a monitor has seen so far.

    Attributes:
        examples: Examples, over all ranks.
        measured: Steps that gave a sample.
        skipped: Steps left out because their gradient was not finite or zero, or no
            update followed.
        batch_size: Examples in the last measured step.
        gain_batch: Examples behind the last gain of a sign step.
        steps: Updates.
    """

    examples: int = 0
    measured: int = 0
    skipped: int = 0
    batch_size: int = 0
    gain_batch: int = 0
    steps: int = 0


@dataclass
class Record:
    """Samples, and what was counted beside them.

    Attributes:
        counts: Steps and examples.
        history: The samples so far, parameter by parameter.
        metrics: The same in the optimizer's metrics, by name.
        course: The samples from the beginning, as sums over the model.
    """

    counts: Counts = field(default_factory=Counts)
    history: History = field(default_factory=History)
    metrics: dict[str, History] = field(default_factory=dict)
    course: Course = field(default_factory=Course)

    def add(self, sample: Sample) -> None:
        """What a measured step said."""
        counts = self.counts
        counts.measured += 1
        counts.batch_size = sample.batch
        counts.gain_batch = sample.gain_batch or counts.gain_batch
        self.history.add(counts.examples, sample.batch, sample.signal, sample.noise)
        sums = {PLAIN: (float(sample.signal.sum()), float(sample.noise.sum()))}
        for name, (signal, noise) in sample.metrics.items():
            if name != "sign":  # its two numbers are no signal and noise
                sums[name] = float(signal.sum()), float(noise.sum())
            history = self.metrics.setdefault(name, History())
            history.add(counts.examples, sample.batch, signal, noise)
        self.course.add(counts.steps, counts.examples, sample.batch, sums)

    def forget(self) -> None:
        """Other parameters from here on: earlier samples are of another gradient."""
        self.history, self.metrics = History(), {}

    def state(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain numbers; of parameters with these names."""
        return {
            "parameters": list(names),
            "counts": dataclasses.asdict(self.counts),
            "history": self.history.state(),
            "course": self.course.state(),
            "metrics": {name: h.state() for name, h in self.metrics.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], names: Sequence[str]) -> Record:
        """What `state` gave.

        Raises:
            SettingError: The state is of a model with other parameters.
        """
        if not {"parameters", "counts", "history", "course", "metrics"} <= set(state):
            raise SettingError(
                "this is not the state of a NoiseMonitor",
                seen=f"keys {list(state)[:5]}",
                fix="what monitor.state_dict() gave",
            )
        if list(state["parameters"]) != list(names):
            raise SettingError(
                "the saved noise is of another model",
                seen=f"{len(state['parameters'])} parameters saved, "
                f"{len(names)} here, or other names",
                why="it is kept parameter by parameter",
                fix="load it into a monitor of the same model and optimizer",
            )
        return cls(
            Counts(**state["counts"]),
            History.from_state(state["history"]),
            {name: History.from_state(h) for name, h in state["metrics"].items()},
            Course.from_state(state["course"]),
        )
