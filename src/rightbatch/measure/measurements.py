"""What measuring leaves behind: plain values, saved as ``measurements.json``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rightbatch.core.estimate import Estimate
from rightbatch.core.findings import Coupled, Finding
from rightbatch.core.json_io import read_json, write_json
from rightbatch.job.optimizers import Family
from rightbatch.memory.points import MemoryPoint
from rightbatch.noise.statistics.moments import NoiseMoments

FORMAT = "rightbatch/measurements/3"
THIS_RUN = "this run"  # the measuring run itself


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What was measured: the job as JSON can hold it.

    Attributes:
        run_examples: What today's run sees; None where its length is not said.
        rate: Its learning-rate schedule in words; empty where the rate stays.
        clip_norm: Largest norm of its gradient.
        coupled: Where the examples of a batch touch each other, see
            `rightbatch.coupling.probe.find_coupling`.
        coupled_batch: How many of them do today: those of one rank, or of all where
            ranks share their statistics.
        grouped: Whether larger micro-batches were timed with BatchNorm over groups of
            so many, so that they are the same function.
    """

    name: str
    spec: str
    example: str
    examples: int
    parameters: int
    optimizer: str
    family: Family
    decoupled_decay: bool
    lr: float
    momentum: float | None
    betas: tuple[float, ...] | None
    weight_decay: float
    batch_size: int
    has_evaluate: bool
    target: float | None
    goal: str
    precision: str
    seed: int
    run_examples: float | None = None
    rate: str = ""
    clip_norm: float | None = None
    coupled: Coupled = ""
    coupled_batch: int | None = None
    grouped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it was measured.

    Attributes:
        device: Torch device of the model's parameters.
        processor: Name of the CPU or accelerator.
        cores: CPU cores this process may use.
        threads: Threads torch uses inside one operation.
        memory_bytes: Memory that is free for this process on ``device``.
        python: Version.
        torch: Version.
        world_size: Processes that trained together. All sizes measured, and those of
            the laws, are over all of them.
    """

    device: str
    processor: str
    cores: int
    threads: int
    memory_bytes: int
    python: str
    torch: str
    world_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePoint:
    """One full step (fetch, forward, backward, update) at one micro-batch.

    Attributes:
        micro_batch: Examples in the step.
        step_time_s: Median wall time.
        process_time_s: Median CPU time of the process, all threads.
        update_time_s: The optimizer's share of the step, once per step however the
            batch is accumulated.
        fetch_time_s: The share that picks and collates the examples.
        rounds: Median wall time of every visit, in order; the rounds of all points
            were interleaved.
        process_rounds: The same in CPU time.
    """

    micro_batch: int
    step_time_s: Estimate
    process_time_s: Estimate
    update_time_s: float
    fetch_time_s: float
    rounds: tuple[float, ...]
    process_rounds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyPoint:
    """Energy of one full step at one micro-batch.

    Attributes:
        micro_batch: Examples in the step.
        joules: Median over windows.
        rounds: Joules of a step in every window.
        meter: What counted them.
    """

    micro_batch: int
    joules: Estimate
    rounds: tuple[float, ...]
    meter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contention:
    """Whether something else used the machine while times were taken.

    Attributes:
        busy: True when times are judged disturbed.
        stalled: Share of time a task here waited for a CPU, from the kernel's own
            accounting; None where the kernel does not tell.
        reason: The sentence for people.
    """

    busy: bool
    stalled: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisePoint:
    """The gradient's noise at one moment of a real training run.

    Attributes:
        step: Optimizer updates made before it.
        examples: Examples seen before it.
        loss: Mean loss over the examples measured; None where it was not seen.
        groups: Independent groups of examples, all at the same weights; of a saved
            run, measured steps.
        group_size: Examples in a group, or in a measured step.
        noise_scale: ``trace / grad_norm_sq`` in examples, Fieller interval.
        plain: Moments in the Euclidean metric.
        preconditioned: Moments in the optimizer's own metric, where it has one.
    """

    step: int
    examples: int
    loss: float | None
    groups: int
    group_size: int
    noise_scale: Estimate
    plain: NoiseMoments
    preconditioned: NoiseMoments | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPoint:
    """The noise of a loss that compares examples, at one moment of a real run.

    Attributes:
        step: Optimizer updates made before it.
        v1: The part in 1/b, in examples.
        v2: That of pairs, in 1/(b(b-1)), in examples squared.
        batch_size: Of least time to the result by these and the times of steps.
    """

    step: int
    v1: Estimate
    v2: Estimate
    batch_size: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """The job's ``evaluate`` along the measuring run."""

    step: int
    examples: int
    metric: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One candidate of the race, trained once from the common start.

    Attributes:
        batch_size: Examples per step.
        micro_batch: Examples in memory at once, over all ranks.
        lr: Learning rate of the first param group.
        seed: Of its stream; lanes of one seed see the same examples in one order.
        step_s: Seconds of a step by the law of step time. A race is timed by steps
            times these, so that whatever else the machine does changes nothing.
        steps: Updates made at each evaluation, increasing.
        metrics: What was found there.
        end: Why it ended: ``"target"`` met; ``"time"``, as long as the race gave it;
            ``"diverged"``; or ``"failed"``: out of memory, or the job's own code.
    """

    batch_size: int
    micro_batch: int
    lr: float
    seed: int
    step_s: float
    steps: tuple[int, ...]
    metrics: tuple[float, ...]
    end: Literal["target", "time", "diverged", "failed"]

    @property
    def seconds(self) -> float:
        """How long it trained, by the law of step time."""
        return self.steps[-1] * self.step_s if self.steps else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Candidates of batch and learning rate, trained from one start.

    Attributes:
        metric: What was compared: ``"evaluate"`` or ``"held-out loss"``.
        goal: ``"min"`` or ``"max"``.
        start: The metric at the common start.
        target: The value that ends a run, where there is one.
        lanes: Every training, in the order in which they were begun.
        seconds: Wall time of it all.
    """

    metric: str
    goal: str
    start: float
    target: float | None
    lanes: tuple[Lane, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Everything measured of a job on a machine; filled in as phases finish.

    ``evaluate_s`` is how long one call of the job's ``evaluate`` takes; ``metric`` is
    what ``metrics`` are: ``"evaluate"`` or ``"held-out loss"``; ``noise_source`` is the
    run that ``noise`` was seen in, in words; ``pairs`` is the noise of pairs where the
    loss compares examples; ``metric_s`` is how long one metric takes,
    as far as any was taken; ``diverged`` says that today's setting ended in a loss that
    is not finite.
    """

    version: str
    command: str
    started: str
    job: JobFacts
    machine: Machine
    findings: tuple[Finding, ...] = ()
    times: tuple[TimePoint, ...] = ()
    contention: Contention | None = None
    memory: tuple[MemoryPoint, ...] = ()
    energy: tuple[EnergyPoint, ...] = ()
    noise: tuple[NoisePoint, ...] = ()
    noise_source: str = THIS_RUN
    pairs: PairPoint | None = None
    metrics: tuple[MetricPoint, ...] = ()
    evaluate_s: float | None = None
    metric: str = "evaluate"
    metric_s: float | None = None
    diverged: bool = False
    race: Race | None = None
    seconds: dict[str, float] | None = None

    @property
    def metric_goal(self) -> str:
        """Whether lower or higher ``metrics`` are better."""
        return self.job.goal if self.metric == "evaluate" else "min"

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically.

        Raises:
            RunFolderError: The folder cannot be written.
        """
        write_json(path, self, FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Measurements:
        """Read what `save` wrote.

        Raises:
            RunFolderError: Missing, damaged, or of another format.
        """
        return read_json(path, cls, FORMAT)

    def spent(self, phase: str, seconds: float) -> Measurements:
        """A copy that also says how long a phase took."""
        return replace(self, seconds={**(self.seconds or {}), phase: seconds})
