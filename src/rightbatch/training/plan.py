"""The plan: what to train with, and why, as data that goes to JSON and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rightbatch.core.estimate import Estimate
from rightbatch.core.json_io import read_json, write_json
from rightbatch.core.shown_as_text import ShownAsText
from rightbatch.schedules.scaling import Scaling

FORMAT = "rightbatch/plan/4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One reason of a decision, for machines (numbers) and for people (text)."""

    topic: str
    text: str
    numbers: dict[str, float]
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """What would be decided if something were otherwise.

    Attributes:
        condition: What would be otherwise, such as ``"critical batch 3 x larger"``.
        batch_size: The batch that would be chosen.
        penalty: Share that the other of the two batches costs more.
        consequence: The same for people.
    """

    condition: str
    batch_size: int
    penalty: float
    consequence: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan(ShownAsText):
    """A batch size with its split and learning rate, and the reasons.

    Attributes:
        job: Name of the job it is for.
        spec: How the job is loaded, such as ``"train.py:job"``.
        decided: False when the evidence does not settle the batch.
        grade: What it rests on: ``"raced to the target"``, ``"raced for 30 % of a
            run"`` or ``"laws only"``.
        objective: What was to be least.
        batch_size: Examples per optimizer step.
        micro_batch: Examples in memory at once on one rank.
        accumulation: Micro-batches of a rank per step.
        world_size: Processes it was measured on: B = b * k * n.
        optimizer: Class of the optimizer it is for.
        lr: Learning rate of the first param group.
        scaling: How every optimizer number follows from today's to the batch.
        lr_factor: ``lr`` over what the scaling makes of today's rate.
        schedule: ``"constant"``: one batch size for the whole run.
        today: The job's own batch size.
        flat_low: Smallest batch predicted within 10 % of the best.
        flat_high: Largest such batch.
        predicted: Step time, and steps, examples and time over today's.
        why: Reasons, in order of weight.
        alternatives: What would change the answer.
        limits: What was not checked.
        verdict: The decision in plain words.
        memory_limit_bytes: What a step was allowed to take.
        deadline_s: Seconds to the target that were allowed, if limited.
        threads: Threads of torch on the CPU it was measured with; None elsewhere.
        examples: Length of the planned run, where today's has one; its learning-rate
            schedule is stretched to it.
        half_batch: The batch at which half of a step's time is overhead, in examples.
        coupled_batch: Examples that see each other, where any do: every micro-batch is
            then kept as it is. One of several times as many is normalised in groups.
    """

    job: str
    spec: str
    decided: bool
    grade: str
    objective: str
    batch_size: int
    micro_batch: int
    accumulation: int
    optimizer: str
    lr: float
    lr_factor: float
    scaling: Scaling
    schedule: str
    today: int
    flat_low: int
    flat_high: int
    predicted: dict[str, Estimate]
    why: tuple[Reason, ...]
    alternatives: tuple[Alternative, ...]
    limits: tuple[str, ...]
    verdict: str
    memory_limit_bytes: float
    deadline_s: float | None = None
    threads: int | None = None
    examples: float | None = None
    half_batch: float | None = None
    world_size: int = 1
    coupled_batch: int | None = None

    def __str__(self) -> str:
        return self.verdict

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically.

        Raises:
            RunFolderError: The folder cannot be written.
        """
        write_json(path, self, FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote.

        Raises:
            RunFolderError: Missing, damaged, or of another format.
        """
        return read_json(path, cls, FORMAT)
