"""A running noise scale while anybody's own loop trains.

One step, seen from here: the model's forward pass begins (`_before_forward`), and for
the first of a step the groups' source and whether to measure at all are chosen; it ends
(`_after_forward`); gradients arrive in the source; the optimizer is about to update
(`_before_update`): the source gives a `Sample`, which is added to the history. Where
a closure makes the gradients inside the update, that happens behind it
(`_after_update`). Each of these is called through a `Guard`.
"""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from rightbatch.core.estimate import Estimate
from rightbatch.core.json_io import write_json
from rightbatch.core.torch_private import acts_on_arrival, in_backward_pass
from rightbatch.noise.group_source import GroupSource
from rightbatch.noise.guard import METRICS, Guard, Hook, warn
from rightbatch.noise.loss_scale import loss_scale
from rightbatch.noise.model_inputs import ModelInputs
from rightbatch.noise.monitor_settings import (
    check_settings,
    optimizers_in,
    watched_parameters,
)
from rightbatch.noise.overhead import UPFRONT, Budget
from rightbatch.noise.rank_gradients import RankGradients
from rightbatch.noise.record import Counts, Record
from rightbatch.noise.saved_noise import FORMAT, SavedNoise
from rightbatch.noise.statistics.history import History
from rightbatch.noise.statistics.optimizer_metric import (
    OptimizerMetrics,
    has_metric,
    root_moments,
)
from rightbatch.noise.statistics.reading import metric_noise, noise_scale_of
from rightbatch.noise.statistics.scale import NoiseScale
from rightbatch.noise.updates import follow_updates, unfollow_updates
from rightbatch.noise.watched import Watched

GROUPS = 8  # |G|^2 gains only sqrt(k/(k-1)) beyond [derived: docs/noise.md]
WINDOW = 0.25  # share of the run an estimate looks back on [measured: docs/noise.md]
METRICS_EVERY = 4  # every so many measured steps the optimizer's metrics too [assumed]
IN_BACKWARD = (
    "gradients are used inside the backward pass, before those of a step are complete "
    "(register_post_accumulate_grad_hook): nothing is measured"
)
QUIET = 5  # updates without a forward pass until we say so [assumed]


class NoiseMonitor:
    """Measures the gradient noise scale of a model while it trains, at little cost.

    Nothing in the model or the loop changes. Each measured step compares groups of
    examples at the same weights; which groups depends on the loop: the micro-batches of
    an accumulated step, the ranks of a distributed one, or else groups that are told
    apart inside the weight gradients. Steps are measured as often as the budget allows.

    Args:
        model: What the loop calls: the outermost wrapper (DDP, compiled, sharded).
        optimizer: Whose parameters are watched, and whose moments give the noise in its
            own metric, if it divides by the gradient's size or takes its sign. A list
            of several, as for Muon beside AdamW; or what wraps them. Default: all of
            the model's parameters, whatever updates them.
        overhead: Share of the training time that measuring may take;
            ``math.inf`` measures every step.
        groups: Groups per batch, or ``"examples"`` for every example by itself.
        population: Size of the data set, where an epoch repeats no example.
        stream: The `BatchStream` that feeds the loop, if one does: then the data set's
            size is known, and groups are cut so that each has the composition of the
            batch (strata, classes). Without it, noise between strata is counted that
            such a batch does not have.
        batch_axis: Axis of the model's first input that has the examples.
        grad_scaler: Has ``get_scale()``: the factor that the loss is multiplied with,
            which is divided out. Torch's own scalers are found where they update; any
            other has to be given.
        verify: Whether to hold what is seen against a backward pass of its own for
            every group again when the inputs' shapes change. The first measured step
            always does.
        upfront: Measured steps to begin with, every other one, before the overhead
            counts; what they took is saved afterwards. For whoever must know soon.
        clock: Seconds; what the overhead is measured with.

    Attributes:
        guard: What hooks of ours go through, and why something is not measured.

    Raises:
        SettingError: An argument makes no sense for this model.

    Note:
        The loss must be a mean or a sum over independent examples. A loss that compares
        examples with each other cannot be seen from here: `rightbatch.noise_scale`
        checks it. Gradients are read before clipping. An error in the monitor's own
        code never reaches the loop: measuring ends, with a warning, and the step goes
        on as without.

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
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
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
        self.model = model
        self.guard = Guard()
        self._record = Record()
        self._optimizers = None if optimizer is None else optimizers_in(optimizer)
        self._batch_axis, self._grad_scaler = batch_axis, grad_scaler
        self._population = population
        self._watch = partial(
            Watched,
            model,
            self._optimizers,
            guard=self.guard,
            population=population,
            groups=None if groups == "examples" else groups,
            verify=verify,
            stream=stream,
        )
        self._budget = Budget(overhead, clock, upfront)

        # Of the step that is being made:
        self._kind = ""  # how it is measured; "": not at all
        self._batches: list[int] = []  # examples of each forward pass
        self._passes: list[int] = []  # the same, also of those that came to nothing
        # Of the steps before:
        self._last_batches: tuple[int, ...] = ()
        self._used: dict[int, tuple[int, ...]] = {}  # of so many passes, these counted
        self._next_measured = 0  # with ranks: the next step that all of them measure
        self._updates_alone = 0  # updates since the last forward pass
        self._problem, self._warned = "", set[str]()

        self._watched = self._watch(watched_parameters(model, self._optimizers))
        self._source: GroupSource = self._watched.source(accumulated=False)
        self._hooks = self._attach()

    @property
    def history(self) -> History:
        """The samples so far, parameter by parameter."""
        return self._record.history

    @property
    def counts(self) -> Counts:
        """Steps and examples so far."""
        return self._record.counts

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """Those it was given."""
        return tuple(self._optimizers or ())

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
            noise_scale_of(blocks, self._watched.names, source.name),
            metrics=metric_noise(
                self._record.metrics, since, self._watched.names, counts.gain_batch
            ),
            source=source.name,
            why=source.why,
            coverage=self._watched.coverage(self._source),
            batch_size=counts.batch_size,
            age=round(counts.examples - middle) if blocks else 0,
            examples=counts.examples,
            skipped=counts.skipped,
            problem=self.guard.stopped or self._problem,
            cost=self._budget.cost,
            verification=self._budget.verification,
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
        saved = SavedNoise.of(
            self._record.course,
            self.read(),
            steps=self.counts.steps,
            parameters=sum(p.numel() for p in self._watched.parameters),
        )
        write_json(path, saved, FORMAT)

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far, as plain numbers."""
        return self._record.state(self._watched.names)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            SettingError: The state is of a model with other parameters.
        """
        self._record = Record.from_state(state, self._watched.names)

    def close(self) -> None:
        """Take every hook away; what was measured stays readable."""
        for hook in self._hooks:
            hook.remove()
        unfollow_updates(self)
        self._watched.cancel()

    def __enter__(self) -> NoiseMonitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _attach(self) -> list[Any]:
        model, this = self.model, weakref.ref(self)
        # An optimizer in a wrapper is not the one whose hooks torch calls: all are
        # looked at, and what they hold says whether they are ours.
        follow_updates(self)
        hooks = [
            model.register_forward_pre_hook(
                Hook(this, "_before_forward"), with_kwargs=True
            ),
            model.register_forward_hook(
                Hook(this, "_after_forward"), with_kwargs=True, always_call=True
            ),
        ]
        for hook in hooks:
            weakref.finalize(self, hook.remove)
        return hooks

    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is not self.model or not torch.is_grad_enabled():
            return
        if self.guard.failing:
            return
        inputs = ModelInputs.of(args, kwargs, self._batch_axis)
        if inputs is None or not inputs.batch:
            self._warn("input", "the model's inputs have no tensor with examples")
            return
        self._updates_alone = 0
        if self._batches and self._kind and self._source.waiting:
            # The model is called again before the backward pass: one step.
            self._source.forward_begins(inputs)
            return
        if self._batches and self._watched.cleared(sure=bool(self._kind)):
            self._drop_step()
        if not self._batches:
            self._begin_step()
        self._batches.append(inputs.batch)
        self._passes.append(inputs.batch)
        self.counts.examples += inputs.batch * self._watched.world_size
        if self._kind:
            self._source.forward_begins(inputs)

    def _after_forward(
        self, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        if module is self.model and self._kind:
            self._source.forward_ends(output)

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """An optimizer is about to update."""
        updates = self._watched.updates
        if not updates.concern(optimizer):
            return None
        if in_backward_pass():
            self._drop_step()
            self._warn("backward", IN_BACKWARD)
            return None
        arguments = updates.begin(optimizer, args, kwargs)
        if arguments is None:
            self._end_step()
        return arguments

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        evaluations = self._watched.updates.end(optimizer)
        if evaluations is None:
            return
        if evaluations > 1:
            self._drop_step()
            self._warn(
                "closure",
                "the optimizer computes gradients itself, at several weights in one "
                "step (closure): nothing is measured",
            )
            return
        self._end_step()

    def _end_step(self) -> None:
        """The step's gradients are complete."""
        if self.guard.failing and self._watched.ranks is not None:
            self._leave_ranks(self._watched.ranks)
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
        passes, first = self._passes, len(self._passes) - len(self._batches)
        if kind:
            self._finish_step(kind)
            used = self._source.used or tuple(range(len(self._batches)))
            self._used[len(passes)] = tuple(first + i for i in used)
            kind = "verification" if self._source.verifies else kind
        self.counts.steps += 1
        counted = self._used.get(len(passes), range(first, len(passes)))
        self._last_batches = tuple(passes[i] for i in counted)
        self._batches, self._passes = [], []
        self._budget.step(kind)

    def _leave_ranks(self, ranks: RankGradients) -> None:
        """After an error here: the others learn of it in the step they all measure."""
        kind = self._kind or self._choose_kind()
        if kind:
            ranks.finish(self._batches)
        self._budget.step(kind)

    def _begin_step(self) -> None:
        accumulated = len(self._last_batches) > 1
        self._source = self._watched.source(accumulated=accumulated)
        self._kind = self._choose_kind()
        if self._kind and any(map(acts_on_arrival, self._watched.parameters)):
            # Gradients that come earlier than without us would be used too early.
            self._kind = ""
            self._warn("backward", IN_BACKWARD)
        others = self._watched.others() if self._kind else None
        if others is not None:
            self._watched = self._watch(others)
            self._source = self._watched.source(accumulated=accumulated)
            self.guard.lost = {}
            self._record.forget()
        if self._kind:
            self._source.begin(self._metrics_for, self._last_batches)

    def _drop_step(self) -> None:
        """The gradients were cleared and no update was made: that was no step."""
        if self._kind:
            self._source.cancel()
            self._skip("no update followed on the gradients")
        self.counts.examples -= sum(self._batches) * self._watched.world_size
        self._kind, self._batches = "", []

    def _choose_kind(self) -> str:
        """How to measure the step that begins: "", "norms" or "metrics"."""
        if self._within_coupled:
            return ""
        measured = self.counts.measured
        turn = measured % METRICS_EVERY == METRICS_EVERY - 1
        turn &= measured > METRICS_EVERY  # first what the plain ones cost
        kind = "metrics" if turn and self._optimizer_has_metric() else "norms"
        if self._watched.ranks is not None and self._next_measured:
            return kind if self._budget.steps >= self._next_measured else ""
        return kind if self._budget.affords(kind) else ""

    @property
    def _within_coupled(self) -> bool:
        within = self._watched.within_batch
        return self._source is within and within.coupled

    def _optimizer_has_metric(self) -> bool:
        if METRICS in self.guard.lost:
            return False
        return any(has_metric(optimizer) for optimizer in self._optimizers or ())

    def _metrics_for(self, sizes: tuple[int, ...]) -> OptimizerMetrics | None:
        if self._kind != "metrics" or len(sizes) < 2:
            return None
        moments = root_moments(self._optimizers or ())
        return OptimizerMetrics(self._watched.parameters, moments, sizes, self.guard)

    def _finish_step(self, kind: str) -> None:
        source = self._source
        if source is self._watched.ranks:
            source.interval = self._budget.interval(kind)
        sample = source.finish(self._batches)
        if sample is not None:
            if source.seen_changed:
                self._record.forget()
            sample = sample.without([*self.guard.lost_parameters])
            sample = sample.unscaled(loss_scale(self._grad_scaler))
        if source is self._watched.ranks:
            interval = max(1, round(source.agreed_interval))
            self._next_measured = self._budget.steps + interval
        if sample is None:
            self._problem = source.problem
        elif not sample.finite:
            self._skip("the gradient was not finite")
        elif sample.zero:
            self._skip("all gradients were zero")
        else:
            self._problem = ""
            self._record.add(sample)
        if source.unmeasurable:
            self._warn("unmeasurable", f"not measurable here: {source.unmeasurable}")
        self._warn_of_dependence()

    def _skip(self, why: str) -> None:
        self.counts.skipped, self._problem = self.counts.skipped + 1, why

    def _warn_of_dependence(self) -> None:
        """Examples that depend on each other have no noise of their own."""
        if self._within_coupled:
            self._warn(
                "coupled",
                "BatchNorm makes an example's gradient depend on its batch: nothing is "
                "measured inside a batch; accumulate two or more micro-batches, train "
                "on several ranks, or use GroupNorm",
            )
        ratio = self._watched.within_batch.neighbours.ratio
        if ratio != 1:
            self._warn(
                "neighbours",
                f"groups of neighbouring examples differ {ratio:.2f} x as much as "
                "groups taken across the batch: examples are not independent (packed, "
                "sorted, repeated), and the noise scale is off; shuffle the examples, "
                "or call what belongs together one example",
            )

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            self._problem = text
            warn(text)
