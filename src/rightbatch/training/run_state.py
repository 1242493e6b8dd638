"""A run in progress: everything that moves, one exact step, and its state."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.core.guards import preserved_rng, set_buffers
from rightbatch.core.random_state import random_state, seed_all, set_random_state
from rightbatch.coupling.norm_conversion import NormConversion, convert_norms
from rightbatch.data.loading.step import Step
from rightbatch.data.loading.stream import BatchStream
from rightbatch.data.order.held_out import Without
from rightbatch.job.job import Job
from rightbatch.job.optimizers import check_rates, first_rate
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.schedules.job_rate import rate_of
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.scaling import multiply_rates
from rightbatch.training.accumulator import Accumulator, Update
from rightbatch.training.controller import Controller
from rightbatch.training.identity import check_same, facts
from rightbatch.training.learning_rate import rate_multiplied
from rightbatch.training.placement import placed, wrapped
from rightbatch.training.ranks import Ranks
from rightbatch.training.run_folder import LEDGER
from rightbatch.training.settings import Settings
from rightbatch.training.weights import set_weights, weights_of

# Share of the time for the noise that a live schedule follows, and measured steps at
# once. Forty of them cost a run of a hundred steps half its time again, and there is
# no more than 4 % to gain [measured: benchmarks/truth/follow.py].
OVERHEAD, LOAN = 0.02, 4
STRIDE = 7919  # between the seeds of ranks: a prime, so that steps do not meet it


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A run at one moment, in memory: see `RunState.rewind`."""

    steps: int
    state: dict[str, Any]
    rate: Rate | None = None


@dataclass
class RunState:
    """A run: its parts, each with a state of its own, and how far it has come.

    Timing, the noise along a run, the race and training all move one of these on. It
    is forked by `snapshot` and `rewind`, which keep one model, one optimizer and one
    exchange between ranks, and is written to disk by the same `state`.

    Attributes:
        job: What is trained.
        model: As the loop calls it: wrapped for several ranks.
        network: The job's own model inside.
        stream: Where its batches come from.
        stream_before: Its state before the last step, to make that again.
        accumulator: Makes a step of a batch.
        ranks: The processes that train it together.
        controller: Makes batch and rate follow a schedule; None: they stay.
        rate: A factor on the learning rate by examples, see `follow`; None: it stays.
        monitor: The noise, where a schedule follows it.
        kept: The examples to train on, where some are held out.
        steps: Updates made or skipped.
        examples: Examples seen.
        due: Examples at the next evaluation.
        time_s: Wall seconds of training so far.
        process_time_s: CPU seconds of this process so far.
        events: What has happened since the last row of the trace.
        reached: Whether the target has been met.
        skipped: Batches left out in a row, up to now.
        facts: What a state must share with this run to be gone on from.
        grouped: The network's BatchNorm layers, where they are replaced by those that
            normalise group by group until the run is closed.
    """

    job: Job
    model: nn.Module
    network: nn.Module
    optimizer: torch.optim.Optimizer
    stream: BatchStream
    accumulator: Accumulator
    ranks: Ranks
    facts: dict[str, Any]
    controller: Controller | None = None
    rate: Rate | None = None
    monitor: NoiseMonitor | None = None
    stream_before: dict[str, Any] | None = None
    kept: Tensor | None = None
    steps: int = 0
    examples: int = 0
    due: int = 0
    time_s: float = 0.0
    process_time_s: float = 0.0
    events: list[str] = field(default_factory=list)
    reached: bool = False
    skipped: int = 0
    grouped: NormConversion | None = None

    def __post_init__(self) -> None:
        self._steps = self._endless()
        self._made = self.stream.step
        self.accumulator.tell = self.tell

    @classmethod
    def start(
        cls,
        job: Job,
        settings: Settings | None = None,
        folder: Path | None = None,
        *,
        alone: bool = False,
        group: int | None = None,
    ) -> RunState:
        """A fresh run at the job's initial weights, on every rank.

        Args:
            job: What is trained.
            settings: How; None: by the job's own recipe (batch, rate, schedule of the
                rate, clipping), which whoever calls may change from step to step.
            folder: Of the run, for its ledger.
            alone: Not with other ranks, even where there are some.
            group: Examples that BatchNorm normalises together in larger micro-batches;
                default: those of the settings, else the whole micro-batch.

        Raises:
            JobError: There are no examples, or model or optimizer cannot be made.
            SettingError: The schedule or a setting cannot be run; ranks do not agree.
        """
        if job.length == 0:
            raise JobError("the data set is empty", seen="len(data) = 0")
        job = placed(job)
        rate = rate_of(job) if settings is None else settings.rate
        torch.manual_seed(job.seed)
        network = job.make_model()
        group = settings.group if settings is not None else group
        grouped = convert_norms(network, "ghost", group=group) if group else None
        shard = settings is not None and settings.shard
        model = network if alone else wrapped(network, shard=shard)
        ranks = Ranks(model)
        # Sharded parameters are other tensors, so only now.
        optimizer = job.make_optimizer(model)
        own_facts = facts(job, network, optimizer)
        about = None if settings is None else str(settings.to_plain())
        ranks.agree(
            "the job",
            own_facts | {"settings": about},
            "start every rank with the same command and files",
        )
        # Other ranks draw other numbers; the first those of a run on one.
        seed_all(job.seed + STRIDE * ranks.rank)
        batch = job.batch_size if settings is None else settings.schedule.start
        micro = None if settings is None else settings.micro_batch
        ledger = settings is not None and settings.ledger and folder
        stream = BatchStream(
            job.data,
            min(batch, job.length) if settings is None else batch,
            seed=job.seed,
            micro_batch=micro,
            tail="carry",
            rank=ranks.rank,
            world_size=ranks.size,
            collate_fn=job.collate,
            num_workers=(settings or job).num_workers,
            ledger=folder / LEDGER if ledger and folder else None,
        )
        accumulator = Accumulator(
            model,
            job.loss,
            optimizer,
            micro,
            precision=job.precision,
            clip_norm=(settings or job).clip_norm,
            nonfinite="stop" if settings is None else settings.nonfinite,
            coupled=settings is not None and settings.coupled,
            check=settings is not None,
        )
        run = cls(job, model, network, optimizer, stream, accumulator, ranks, own_facts)
        run.grouped = grouped
        run.follow(rate)
        if settings is not None:
            run._control(settings)
        return run

    def _control(self, settings: Settings) -> None:
        """Make batch and rate follow the schedule of the settings."""
        job, micro = self.job, settings.micro_batch
        multiply_rates(self.optimizer, settings.lr_factor)
        if settings.schedule.live:
            # On a CPU that others use too, the clock on the wall tells of them.
            on_cpu = self.device.type == "cpu"
            self.monitor = NoiseMonitor(
                self.model,
                self.optimizer,
                OVERHEAD,
                stream=self.stream,
                upfront=LOAN,
                clock=time.process_time if on_cpu else time.perf_counter,
            )
        self.controller = Controller(
            settings.schedule,
            self.optimizer,
            job.batch_size,
            stream=self.stream,
            monitor=self.monitor,
            rule=settings.rule,
            noise_scale=settings.noise_scale,
            exponent=settings.exponent,
            largest=min(job.length, settings.largest or job.length),
            multiple=settings.multiple or (micro or 1) * self.ranks.size,
            model=self.model,
        )

    @property
    def device(self) -> torch.device:
        """Of the model's parameters."""
        return self.accumulator.device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer holds."""
        return self.accumulator.gradient.parameters

    @property
    def batch_size(self) -> int:
        """Examples of the next step, over all ranks."""
        return self.stream.batch_size

    @property
    def lr(self) -> float | None:
        """Learning rate of the first param group in the next step, if it has one."""
        rate = first_rate(self.optimizer)
        return None if rate is None else rate * self._factor()

    def follow(self, rate: Rate | None) -> None:
        """From the next step on multiply the learning rate by a factor of examples.

        Only within a step: between two the optimizer holds the rate without it.

        Args:
            rate: Instead of the one in force; None: the learning rate stays. A
                `rewind` brings back the one in force at its snapshot.

        Raises:
            SettingError: There is no learning rate to multiply.
        """
        if rate is not None:
            check_rates(self.optimizer, "a schedule of the rate is to be followed")
        self.rate = rate

    def _factor(self) -> float:
        return 1.0 if self.rate is None else self.rate(self.examples)

    def tell(self, text: str) -> None:
        """Note for the trace what was decided or has happened."""
        self.events.append(f"step {self.steps}: {text}")

    def split(self, batch_size: int, micro_batch: int | None = None) -> None:
        """From the next step on: so many examples, at most so many at once on a rank.

        For whoever measures; a run with a schedule has a controller for it.
        """
        if batch_size != self.stream.batch_size:
            self.stream.batch_size = batch_size
        self.accumulator.plan_micro_batch(micro_batch)

    def next_batch(self) -> Step:
        """The next step's examples; the stream moves on once they are all read."""
        return next(self._steps)

    def step(self, flags: Sequence[float] = ()) -> Update:
        """Take the next batch and make one exact update, on all ranks.

        Args:
            flags: Numbers to tell the other ranks on the way.

        Raises:
            JobError: The loss is not finite, not even one example fits in memory, or
                the job's own code failed.
        """
        batch = self.next_batch()
        with rate_multiplied(self.optimizer, self._factor()):
            update = self.accumulator(batch, flags=flags)
        self.steps += 1
        self.examples += batch.examples
        if self.controller is not None:
            change = self.controller(self.examples)
            if change is not None:
                self.tell(str(dataclasses.replace(change, lr=self.lr)))
        self.skipped = 0 if update.applied else self.skipped + 1
        if self.skipped:
            self.tell(f"batch skipped: its loss was {update.loss:g}")
        self._made = self.stream.step
        return update

    @property
    def between_steps(self) -> bool:
        """Whether the state is whole, after an error too: no step has been half made.

        A step begins to change something once all its examples have been read, and
        with that the stream moves on.
        """
        return self.stream.step == self._made

    def _endless(self) -> Iterator[Step]:
        while True:
            yield from self.stream.steps()  # to the end of an epoch

    def on_first(self, value: Callable[[nn.Module], float]) -> float:
        """A number of the model, alike on all ranks, as the first rank finds it.

        Random numbers are as before: how often it is asked must not change the run.
        """
        with preserved_rng():
            if self.ranks.sharded:  # each part of the model is needed
                return self.ranks.from_first(value(self.model))
            own = value(self.network) if self.ranks.rank == 0 else None
            return self.ranks.from_first(own)

    def evaluated(self) -> float | None:
        """The job's ``evaluate``, alike on all ranks; None where it has none."""
        return None if self.job.evaluate is None else self.on_first(self.job.evaluated)

    def snapshot(self) -> Snapshot:
        """A copy of everything in memory, to come back to by `rewind`. Collective."""
        state = copy.deepcopy(self.state())
        return Snapshot(self.steps, state, self.rate)

    def rewind(
        self,
        snapshot: Snapshot,
        *,
        seed: int | None = None,
        kept: Tensor | None = None,
    ) -> None:
        """Go on from a `snapshot`, which stays as it is. Collective.

        Args:
            snapshot: Of this run.
            seed: Read another stream from its beginning, instead of going on.
            kept: From now on train on these examples only; a new stream too.
        """
        if kept is not None:
            self.kept = kept
        state = dict(snapshot.state)
        if seed is not None or kept is not None:
            self._read_anew(self.job.seed if seed is None else seed)
            state["stream"] = self.stream.state_dict()
        elif state["stream"]["seed"] != self.stream.seed:  # kept while on another one
            self._read_anew(state["stream"]["seed"])
        # What an optimizer loads it goes on to write into.
        state["optimizer"] = copy.deepcopy(state["optimizer"])
        self.restore(state)
        self.follow(snapshot.rate)

    def with_other_weights(self, snapshot: Snapshot, seed: int) -> Snapshot:
        """The same moment, with the job's initial weights of another seed."""
        with preserved_rng():
            model = dataclasses.replace(self.job, seed=seed).make_model()
        buffers = {name: b.detach() for name, b in model.named_buffers()}
        state = {**snapshot.state, "model": model.state_dict(), "buffers": buffers}
        return dataclasses.replace(snapshot, state=state)

    def _read_anew(self, seed: int) -> None:
        """Another stream, over the examples that are kept."""
        self.stream.close()
        self.stream = BatchStream(
            self.job.data,
            self.stream.batch_size,
            seed=seed,
            order="shuffled"
            if self.kept is None
            else Without(self.job.length, self.kept),
            tail="carry",
            rank=self.ranks.rank,
            world_size=self.ranks.size,
            collate_fn=self.job.collate,
            num_workers=self.stream.num_workers,
        )
        self._steps = self._endless()

    def state(self, stream: dict[str, Any] | None = None) -> dict[str, Any]:
        """Everything a checkpoint needs. Collective.

        Args:
            stream: State of the stream to save, if not the present one.
        """
        model, optimizer = weights_of(
            self.network, self.optimizer, sharded=self.ranks.sharded
        )
        parts = {"controller": self.controller, "monitor": self.monitor}
        return {
            "job": self.facts,
            "reached": self.reached,
            "world_size": self.ranks.size,
            "sharded": self.ranks.sharded,
            "model": model,
            # Not part of a state dict, but of the model.
            "buffers": {n: b.detach() for n, b in self.network.named_buffers()},
            "optimizer": optimizer,
            "stream": self.stream.state_dict() if stream is None else stream,
            "accumulator": self.accumulator.state_dict(),
            **{k: None if v is None else v.state_dict() for k, v in parts.items()},
            "random": self.ranks.gather_objects(random_state(self.device)),
            "steps": self.steps,
            "examples": self.examples,
            "due": self.due,
            "time_s": self.time_s,
            "process_time_s": self.process_time_s,
            "events": list(self.events),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, on any number of ranks. Collective.

        Raises:
            SettingError: It is the state of another job; nothing has changed.
        """
        check_same(state["job"], self.facts)
        self.reached = state["reached"]
        set_buffers(self.network, state["buffers"])  # first, for their shapes
        set_weights(self.network, self.optimizer, state, sharded=self.ranks.sharded)
        self.stream.load_state_dict(state["stream"])
        self._made = self.stream.step
        self.accumulator.load_state_dict(state["accumulator"])
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        if self.monitor is not None and state["monitor"] is not None:
            self.monitor.load_state_dict(state["monitor"])
        saved = state["random"]
        if self.ranks.rank < len(saved) and state["world_size"] == self.ranks.size:
            set_random_state(saved[self.ranks.rank], self.device)
        else:  # another number of ranks: numbers that no rank has drawn yet
            seed_all(self.job.seed + STRIDE * self.ranks.rank + state["steps"])
        self.steps, self.examples = state["steps"], state["examples"]
        self.due, self.time_s = state["due"], state["time_s"]
        self.process_time_s = state["process_time_s"]
        self.events = list(state["events"])

    def close(self) -> None:
        """Stop workers, take hooks away and give the network its own layers back."""
        self.stream.close()
        if self.grouped is not None:
            self.grouped.undo()
            self.grouped = None
        if self.monitor is not None:
            self.monitor.close()
