"""A running noise scale while anybody's own loop trains.

One step, seen from here: the model's forward pass begins (`_before_forward`), and for
the first of a step the groups' source and whether to measure at all are chosen; it ends
(`_after_forward`); gradients arrive in the source; the optimizer is about to update
(`_before_update`): the source gives a `Sample`, which is added to the history.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.core.json_io import write_json
from rightbatch.noise.group_source import GroupSource
from rightbatch.noise.guard import Guard
from rightbatch.noise.micro_batches import MicroBatches
from rightbatch.noise.model_inputs import ModelInputs
from rightbatch.noise.monitor_hook import Hook
from rightbatch.noise.monitor_settings import (
    check_settings,
    watched_parameters,
)
from rightbatch.noise.overhead import UPFRONT, Budget
from rightbatch.noise.rank_gradients import RankGradients, world_size_of
from rightbatch.noise.saved_noise import FORMAT, SavedNoise
from rightbatch.noise.statistics.course import PLAIN, Course
from rightbatch.noise.statistics.history import History
from rightbatch.noise.statistics.optimizer_metric import OptimizerMetrics, root_moments
from rightbatch.noise.statistics.reading import metric_noise, noise_scale_of
from rightbatch.noise.statistics.samples import Sample
from rightbatch.noise.statistics.scale import Coverage, NoiseScale
from rightbatch.noise.within_batch import WithinBatch

GROUPS = 8  # |G|^2 gains only sqrt(k/(k-1)) beyond [derived: docs/noise.md]
WINDOW = 0.25  # share of the run an estimate looks back on [measured: docs/noise.md]
METRICS_EVERY = 4  # every so many measured steps the optimizer's metrics too [assumed]
LOW_COVERAGE = 0.5  # share of the parameters below which a warning is due [assumed]
LEARNED = 3  # measured steps by which layouts and checkpointing are known [derived]
QUIET = 5  # updates without a forward pass until we say so [assumed]


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


class NoiseMonitor:
    """Measures the gradient noise scale of a model while it trains, at little cost.

    Nothing in the model or the loop changes. Each measured step compares groups of
    examples at the same weights; which groups depends on the loop: the micro-batches of
    an accumulated step, the ranks of a distributed one, or else groups that are told
    apart inside the weight gradients. Steps are measured as often as the budget allows.

    Args:
        model: What the loop calls: the outermost wrapper (DDP, compiled, sharded).
        optimizer: Whose parameters are watched, and whose moments give the noise in its
            own metric, if it divides by the gradient's size or takes its sign. Default:
            any optimizer that updates the model's parameters.
        overhead: Share of the training time that measuring may take;
            ``math.inf`` measures every step.
        groups: Groups per batch, or ``"examples"`` for every example by itself.
        population: Size of the data set, where an epoch repeats no example.
        stream: The `BatchStream` that feeds the loop, if one does: then the data set's
            size is known, and groups are cut so that each has the composition of the
            batch (strata, classes). Without it, noise between strata is counted that
            such a batch does not have.
        batch_axis: Axis of the model's first input that has the examples.
        grad_scaler: The loop's ``GradScaler``, whose factor is divided out.
        verify: Whether to test once, by an extra backward pass, that each example's
            gradient is seen where it belongs.
        upfront: Measured steps to begin with, every other one, before the overhead
            counts; what they took is saved afterwards. For whoever must know soon.
        clock: Seconds; what the overhead is measured with.

    Attributes:
        history: The samples so far, the recent ones finely.
        course: The samples from the beginning, for `save`.
        counts: Steps and examples so far.

    Raises:
        SettingError: An argument makes no sense for this model.

    Note:
        The loss must be a mean or a sum over independent examples. A loss that compares
        examples with each other cannot be seen from here: `rightbatch.noise_scale`
        checks it. Gradients are read before clipping.

    Example:
        >>> import math, torch, rightbatch as rb
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = rb.NoiseMonitor(model, optimizer, overhead=math.inf)
        >>> for _ in range(20):
        ...     x = torch.randn(16, 3)
        ...     loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> monitor.read(window=20 * 16).steps
        20
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        overhead: float = 0.02,
        *,
        groups: int | Literal["examples"] = GROUPS,
        population: int | None = None,
        stream: Any = None,
        batch_axis: int = 0,
        grad_scaler: Any = None,
        verify: bool = True,
        upfront: int = UPFRONT,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_settings(model, optimizer, overhead, groups, population)
        if stream is not None and population is None and stream.order.covers:
            population = stream.length
        self.model, self.optimizer = model, optimizer
        self.history, self.course, self.counts = History(), Course(), Counts()
        watched = watched_parameters(model, optimizer)
        parameters = [p for _, p in watched]
        self._parameters: list[Tensor] = parameters
        self._batch_axis, self._scaler = batch_axis, grad_scaler
        self._population = population
        self._budget = Budget(overhead, clock, upfront)
        self._metric_histories: dict[str, History] = {}

        # Of the step that is being made:
        self._kind = ""  # how it is measured; "": not at all
        self._batches: list[int] = []  # examples of each forward pass
        # Of the steps before:
        self._last_batches: tuple[int, ...] = ()
        self._next_measured = 0  # with ranks: the next step that all of them measure
        self._updates_alone = 0  # updates since the last forward pass
        self._problem, self._warned = "", set[str]()

        self._world_size = world_size_of(model)
        count = None if groups == "examples" else groups
        self._guard = Guard()
        self._within_batch = WithinBatch(
            model, parameters, population, count, verify, self._guard
        )
        if stream is not None and stream.composed:
            self._within_batch.equal_groups = stream.alike
        self._micro_batches = MicroBatches(parameters, population)
        self._ranks: RankGradients | None = None
        if self._world_size > 1:
            self._ranks = RankGradients(model, parameters, population, self._world_size)
        self._source: GroupSource = self._ranks or self._within_batch
        # With FSDP only wrapped modules can be told apart.
        units = None if self._ranks is None else self._ranks.units
        self._names = [n for n, _ in watched] if units is None else units
        self._hooks = self._attach()

    @property
    def noise_scale(self) -> Estimate:
        """The running noise scale in examples; infinite where nothing is known yet."""
        return self.read().noise_scale

    def read(self, window: int | None = None) -> NoiseScale:
        """The noise scale now, whole, by layer and in the optimizer's metrics.

        Args:
            window: Examples to look back on; default the last quarter of the run.
        """
        counts, source = self.counts, self._source
        back = WINDOW * counts.examples if window is None else window
        since = counts.examples - back
        blocks = self.history.since(since, at_least=1)  # however old
        middle = (blocks[0].first + blocks[-1].last) / 2 if blocks else 0.0
        return dataclasses.replace(
            noise_scale_of(blocks, self._names, source.name),
            metrics=metric_noise(
                self._metric_histories, since, self._names, counts.gain_batch
            ),
            source=source.name,
            why=source.why,
            coverage=self._coverage(),
            batch_size=counts.batch_size,
            age=round(counts.examples - middle) if blocks else 0,
            examples=counts.examples,
            skipped=counts.skipped,
            problem=self._problem,
            cost=self._budget.cost,
            population=self._population,
        )

    def log(self, prefix: str = "noise/") -> dict[str, float]:
        """Plain numbers for any logger: ``wandb.log(monitor.log(), step=step)``."""
        return self.read().log(prefix)

    def save(self, path: str | Path) -> None:
        """Write the noise along the run so far, for ``rightbatch tune JOB --noise``.

        At most 64 readings, evenly spread over the examples seen; one rank is enough.
        A file that is there is written over.

        Args:
            path: Such as ``"noise.json"``; its folder exists.

        Raises:
            RunFolderError: It cannot be written.
        """
        size = sum(p.numel() for p in self._parameters)
        steps = self.counts.steps
        saved = SavedNoise.of(self.course, self.read(), steps=steps, parameters=size)
        write_json(path, saved, FORMAT)

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far, as plain numbers."""
        return {
            "parameters": self._names,
            "counts": dataclasses.asdict(self.counts),
            "history": self.history.state(),
            "course": self.course.state(),
            "metrics": {name: h.state() for name, h in self._metric_histories.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            SettingError: The state is of a model with other parameters.
        """
        if not {"parameters", "counts", "history", "course", "metrics"} <= set(state):
            raise SettingError(
                "this is not the state of a NoiseMonitor",
                seen=f"keys {list(state)[:5]}",
                fix="what monitor.state_dict() gave",
            )
        if list(state["parameters"]) != self._names:
            raise SettingError(
                "the saved noise is of another model",
                seen=f"{len(state['parameters'])} parameters saved, "
                f"{len(self._names)} here, or other names",
                why="it is kept parameter by parameter",
                fix="load it into a monitor of the same model and optimizer",
            )
        self.counts = Counts(**state["counts"])
        self.history = History.from_state(state["history"])
        self.course = Course.from_state(state["course"])
        self._metric_histories = {
            name: History.from_state(saved) for name, saved in state["metrics"].items()
        }

    def close(self) -> None:
        """Take every hook away; what was measured stays readable."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for source in (self._within_batch, self._micro_batches, self._ranks):
            if source is not None:
                source.cancel()

    def __enter__(self) -> NoiseMonitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _attach(self) -> list[Any]:
        model, this = self.model, weakref.ref(self)
        before, after, update = (
            Hook(this, name)
            for name in ("_before_forward", "_after_forward", "_before_update")
        )
        hooks = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]
        if self.optimizer is not None:
            return [*hooks, self.optimizer.register_step_pre_hook(update)]
        return [*hooks, register_optimizer_step_pre_hook(update)]

    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is not self.model or not torch.is_grad_enabled():
            return
        inputs = ModelInputs.of(args, kwargs, self._batch_axis)
        if inputs is None or not inputs.batch:
            self._warn("input", "the model's inputs have no tensor with examples")
            return
        batch = inputs.batch
        self._updates_alone = 0
        if self._batches and all(p.grad is None for p in self._parameters):
            if self._kind and self._source.waiting:
                # The model is called again before the backward pass: one step.
                self._source.forward_begins(inputs)
                return
            self._drop_step()
        if not self._batches:
            self._begin_step()
        self._batches.append(batch)
        self.counts.examples += batch * self._world_size
        if self._kind:
            self._source.forward_begins(inputs)

    def _after_forward(
        self, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        if module is self.model and self._kind:
            self._source.forward_ends(output)

    def _before_update(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> None:
        """An optimizer is about to update: the step's gradients are complete."""
        if self.optimizer is None and not self._updates_model(optimizer):
            return
        if any(callable(a) for a in (*args[1:], *kwargs.values())):
            self._drop_step()
            self._warn(
                "closure",
                "the optimizer computes gradients itself, at several weights in one "
                "step (closure): nothing is measured",
            )
            return
        if not self._batches:
            self._updates_alone += 1
            if self._updates_alone == QUIET:
                self._warn(
                    "quiet",
                    f"{QUIET} updates, and no forward pass of the model was seen: give "
                    "NoiseMonitor the module that the loop calls: the wrapped one, or "
                    "compiled = torch.compile(model) (not model.compile())",
                )
            return
        kind, self._kind = self._kind, ""
        if kind:
            self._finish_step(kind)
        self.counts.steps += 1
        self._last_batches, self._batches = tuple(self._batches), []
        self._budget.step(kind)

    def _updates_model(self, optimizer: torch.optim.Optimizer) -> bool:
        ids = {id(p) for p in self._parameters}
        groups = optimizer.param_groups
        return any(id(p) in ids for group in groups for p in group["params"])

    def _begin_step(self) -> None:
        accumulated = len(self._last_batches) > 1
        one_process = self._micro_batches if accumulated else self._within_batch
        self._source = self._ranks or one_process
        self._kind = self._choose_kind()
        if self._kind:
            self._source.begin(self._metrics_for, self._last_batches)

    def _drop_step(self) -> None:
        """The gradients were cleared and no update was made: that was no step."""
        if self._kind:
            self._source.cancel()
            self._skip("no update followed on the gradients")
        self.counts.examples -= sum(self._batches) * self._world_size
        self._kind, self._batches = "", []

    def _choose_kind(self) -> str:
        """How to measure the step that begins: "", "norms" or "metrics"."""
        if self._source is self._within_batch and self._within_batch.coupled:
            return ""
        measured = self.counts.measured
        turn = measured % METRICS_EVERY == METRICS_EVERY - 1
        turn &= measured > METRICS_EVERY  # first what the plain ones cost
        kind = "metrics" if turn and self._optimizer_has_metric() else "norms"
        if self._ranks is not None and self._next_measured:
            return kind if self._budget.steps >= self._next_measured else ""
        return kind if self._budget.affords(kind) else ""

    def _optimizer_has_metric(self) -> bool:
        if self.optimizer is None:
            return False
        signed = "sign" in type(self.optimizer).__name__.lower()
        return signed or any("betas" in group for group in self.optimizer.param_groups)

    def _metrics_for(self, sizes: tuple[int, ...]) -> OptimizerMetrics | None:
        if self._kind != "metrics" or len(sizes) < 2:
            return None
        return OptimizerMetrics(self._parameters, root_moments(self.optimizer), sizes)

    def _finish_step(self, kind: str) -> None:
        source = self._source
        if source is self._ranks:
            source.interval = self._budget.interval(kind)
        sample = source.finish(self._batches)
        if sample is not None and self._scaler is not None:
            sample = sample.unscaled(float(self._scaler.get_scale()))
        if source is self._ranks:
            interval = max(1, round(source.agreed_interval))
            self._next_measured = self._budget.steps + interval
        if sample is None:
            self._problem = source.problem
        elif not sample.finite:
            self._skip("the gradient was not finite")
        elif sample.zero:
            self._skip("all gradients were zero")
        else:
            self._record(sample)
        self._warn_of_dependence()

    def _skip(self, why: str) -> None:
        self.counts.skipped += 1
        self._problem = why

    def _record(self, sample: Sample) -> None:
        counts, self._problem = self.counts, ""
        counts.measured += 1
        counts.batch_size = sample.batch
        counts.gain_batch = sample.gain_batch or counts.gain_batch
        self.history.add(counts.examples, sample.batch, sample.signal, sample.noise)
        sums = {PLAIN: (float(sample.signal.sum()), float(sample.noise.sum()))}
        for name, (signal, noise) in sample.metrics.items():
            if name != "sign":  # its two numbers are no signal and noise
                sums[name] = float(signal.sum()), float(noise.sum())
            history = self._metric_histories.setdefault(name, History())
            history.add(counts.examples, sample.batch, signal, noise)
        self.course.add(counts.steps, counts.examples, sample.batch, sums)
        share = self._coverage().parameters
        if share < LOW_COVERAGE and counts.measured > LEARNED:
            self._warn(
                "coverage",
                f"only {share:.0%} of the parameters can be seen; "
                ".read().coverage.missing says why; accumulated micro-batches show all",
            )

    def _warn_of_dependence(self) -> None:
        """Examples that depend on each other have no noise of their own."""
        if self._source is self._within_batch and self._within_batch.coupled:
            self._warn(
                "coupled",
                "BatchNorm makes an example's gradient depend on its batch: nothing is "
                "measured inside a batch; accumulate two or more micro-batches, train "
                "on several ranks, or use GroupNorm",
            )
        ratio = self._within_batch.neighbours.ratio
        if ratio is not None:
            self._warn(
                "neighbours",
                f"groups of neighbouring examples differ {ratio:.2f} x as much as "
                "groups taken across the batch: examples are not independent (packed, "
                "sorted, repeated), and the noise scale is off; shuffle the examples, "
                "or call what belongs together one example",
            )

    def _coverage(self) -> Coverage:
        missing = self._source.missing
        sizes = [p.numel() for p in self._parameters]
        lost = sum(sizes[i] for i in missing)
        return Coverage(
            parameters=1 - lost / max(sum(sizes), 1),
            missing={self._names[i]: why for i, why in missing.items()},
            verified=self._source.verified,
        )

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            self._problem = text
            warnings.warn(f"NoiseMonitor: {text}", stacklevel=2)
