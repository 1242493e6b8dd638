"""A running noise scale while anybody's own loop trains."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.noise.budget import LOAN, Budget
from rightbatch.noise.capture.listening import batch_of
from rightbatch.noise.capture.rules import square
from rightbatch.noise.rank_gradients import world
from rightbatch.noise.settings import (
    check_settings,
    names,
    norm_parameters,
    tracked,
)
from rightbatch.noise.sources import Accumulated, AcrossRanks, Inside, Source
from rightbatch.noise.statistics.history import Ledger
from rightbatch.noise.statistics.optimizer_metric import Lens, root_moments
from rightbatch.noise.statistics.reading import by_proxy, metrics_of, noise_of
from rightbatch.noise.statistics.samples import Sample
from rightbatch.noise.statistics.scale import Coverage, NoiseScale

GROUPS = 8  # |G|^2 gains only sqrt(k/(k-1)) beyond [derived: docs/noise.md]
WINDOW = 0.25  # share of the run an estimate looks back on [measured: docs/noise.md]
LEAST = 1  # sample at least, however old; one alone has no interval [derived]
METRICS_EVERY = 4  # every so many measured steps the optimizer's metrics too [assumed]
SEEN = 0.5  # share of the parameters below which a warning is due [assumed]
LEARNED = 3  # measured steps by which layouts and checkpointing are known [derived]
QUIET = 5  # updates without a forward pass until we say so [assumed]


class Hook:
    """Calls a monitor as long as there is one; a copy of it calls nobody.

    So a watched model can be copied and pickled, and its copy is not watched.
    """

    def __init__(self, monitor: Any, name: str) -> None:
        self._monitor, self._name = monitor, name

    def __call__(self, *args: Any) -> None:
        """What happened, passed on, unless a compiler is tracing it."""
        monitor = None if self._monitor is None else self._monitor()
        if monitor is not None and not torch.compiler.is_compiling():
            getattr(monitor, self._name)(*args)

    def __reduce__(self) -> Any:
        return Hook, (None, self._name)


class NoiseMonitor:
    """Measures the gradient noise scale of a model while it trains, at little cost.

    Nothing in the model or the loop changes. Each measured step compares groups of
    examples at the same weights; which groups depends on the loop: the micro-batches of
    an accumulated step, the ranks of a distributed one, or else groups that are told
    apart inside the weight gradients. Steps are measured as often as the budget allows.

    Args:
        model: What the loop calls: the outermost wrapper (DDP, compiled, sharded).
        optimizer: Whose parameters are watched, and whose moments give the noise in its
            own metric. Default: any optimizer that updates the model's parameters.
        overhead: Share of the training time that measuring may take;
            ``math.inf`` measures every step.
        groups: Groups per batch, or ``"examples"`` for every example by itself.
        population: Size of the data set, where an epoch repeats no example.
        stream: The `BatchStream` that feeds the loop, if one does: then the data set's
            size is known, and groups are cut so that each has the composition of the
            batch (strata, classes). Without it, noise between strata is counted that
            such a batch does not have.
        batch_axis: Axis of the model's first input that has the examples.
        example: What one example is, for people: ``"sequence of 128 tokens"``.
        grad_scaler: The loop's ``GradScaler``, whose factor is divided out.
        metrics: Whether to measure in the optimizer's metrics too; default: if it
            divides by the gradient's own size, or takes its sign.
        proxy: Whether to measure normalisation layers alone in steps between, and to
            carry their noise scale over by the ratio seen in whole measurements. Almost
            free, but only as good as that ratio is constant.
        verify: Whether to test once, by an extra backward pass, that each example's
            gradient is seen where it belongs.
        loan: Measured steps to begin with, every other one, before the overhead counts;
            it is paid back afterwards. For whoever must know soon.
        clock: Seconds; what the overhead is measured with.

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
        example: str = "example",
        grad_scaler: Any = None,
        metrics: bool | None = None,
        proxy: bool = False,
        verify: bool = True,
        loan: int = LOAN,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_settings(model, optimizer, overhead, groups, population)
        self.model, self.optimizer = model, optimizer
        watched = tracked(model, optimizer)
        self._parameters: list[Tensor] = [p for _, p in watched]
        self._ids = {id(p) for p in self._parameters}
        self._axis, self._example, self._scaler = batch_axis, example, grad_scaler
        self._metrics, self._population, self._proxy = metrics, population, proxy
        self._budget = Budget(overhead, clock, loan)
        self._clock = clock
        self._ledger = Ledger()
        self._metric_ledgers: dict[str, Ledger] = {}
        self._norm_ledger = Ledger()  # of normalisation layers, in every measured step
        self._examples, self._skipped, self._zero, self._dropped = 0, 0, 0, 0
        self._batch, self._gain_batch, self._measured = 0, 0, 0
        self._micro: list[int] = []  # examples of each forward pass of this step
        self._usual: tuple[int, ...] = ()  # of the step before
        self._kind = ""  # how this step is measured; "": not at all
        self._next = 0  # with ranks: the next step that all of them measure
        self._gradient_share = 1.0
        self._quiet, self._warned = 0, set[str]()
        self._trouble = ""
        self._world = world(model)
        if stream is not None and population is None and stream.order.covers:
            self._population = population = stream.length
        count = None if groups == "examples" else groups
        self._inside = Inside(model, self._parameters, population, count, verify)
        if stream is not None and stream.composed:
            self._inside.alike = stream.alike
        self._accumulated = Accumulated(self._parameters, population)
        self._across: AcrossRanks | None = None
        if self._world > 1:
            self._across = AcrossRanks(model, self._parameters, population, self._world)
        self._norms = norm_parameters(model, self._parameters)
        if proxy and not self._norms:
            raise SettingError(
                "proxy=True needs normalisation layers with parameters of their own",
                seen="no LayerNorm, RMSNorm, GroupNorm or InstanceNorm in the model",
                fix="leave proxy out",
            )
        units = None if self._across is None else self._across.units
        self._names = names(watched, optimizer, units)
        self._source: Source = self._across or self._inside
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
        back = WINDOW * self._examples if window is None else window
        since = self._examples - back
        blocks = self._ledger.since(since, at_least=LEAST if window is None else 1)
        source = self._source
        found = noise_of(blocks, self._names, f"{source.name}")
        middle = (blocks[0].first + blocks[-1].last) / 2 if blocks else 0.0
        if self._proxy and blocks:
            between = self._norm_ledger.since(since, at_least=LEAST)
            found = by_proxy(found, self._ledger.blocks, between, self._norms)
        return replace(
            found,
            metrics=metrics_of(
                self._metric_ledgers, since, self._names, self._gain_batch
            ),
            source=source.name,
            why=source.why,
            coverage=self._coverage(),
            batch_size=self._batch,
            age=round(self._examples - middle) if blocks else 0,
            examples=self._examples,
            skipped=self._skipped,
            zero=self._zero,
            dropped=self._dropped,
            trouble=source.trouble or self._trouble,
            cost=self._budget.cost,
            example=self._example,
            population=self._population,
        )

    def log(self, prefix: str = "noise/") -> dict[str, float]:
        """Plain numbers for any logger: ``wandb.log(monitor.log(), step=step)``."""
        return self.read().log(prefix)

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far, as plain numbers."""
        return {
            "parameters": list(self._names.parameters),
            "examples": self._examples,
            "skipped": self._skipped,
            "zero": self._zero,
            "measured": self._measured,
            "batch": self._batch,
            "gain_batch": self._gain_batch,
            "ledger": self._ledger.state(),
            "norms": self._norm_ledger.state(),
            "metrics": {n: one.state() for n, one in self._metric_ledgers.items()},
            "budget": self._budget.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            SettingError: The state is of a model with other parameters.
        """
        if "parameters" not in state:
            raise SettingError(
                "this is no state of a NoiseMonitor",
                seen=f"keys {list(state)[:5]}",
                fix="what monitor.state_dict() gave",
            )
        if list(state["parameters"]) != list(self._names.parameters):
            raise SettingError(
                "the saved noise is of another model",
                seen=f"{len(state['parameters'])} parameters saved, "
                f"{len(self._names.parameters)} here, or other names",
                why="it is kept parameter by parameter",
                fix="load it into a monitor of the same model and optimizer",
            )
        self._examples, self._skipped = state["examples"], state["skipped"]
        self._zero, self._measured = state["zero"], state["measured"]
        self._batch, self._gain_batch = state["batch"], state["gain_batch"]
        self._ledger = Ledger.from_state(state["ledger"])
        self._norm_ledger = Ledger.from_state(state["norms"])
        self._metric_ledgers = {
            n: Ledger.from_state(one) for n, one in state["metrics"].items()
        }

    def close(self) -> None:
        """Take every hook away; what was measured stays readable."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for source in (self._inside, self._accumulated, self._across):
            if source is not None:
                source.detach()

    def __enter__(self) -> NoiseMonitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _attach(self) -> list[Any]:
        model, me = self.model, weakref.ref(self)
        before, after, update = (
            Hook(me, name) for name in ("_before", "_after", "_update")
        )
        hooks = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]
        if self.optimizer is not None:
            return [*hooks, self.optimizer.register_step_pre_hook(update)]
        return [*hooks, register_optimizer_step_pre_hook(update)]

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is self.model and torch.is_grad_enabled():
            self._forward_begins(args, kwargs)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module is self.model and self._kind:
            self._source.forward_ends(output)

    def _forward_begins(self, args: Any, kwargs: Any) -> None:
        batch = batch_of(args, kwargs, self._axis)
        if not batch:
            self._warn("input", "the model's inputs have no tensor with examples")
            return
        self._quiet = 0
        if self._micro and all(p.grad is None for p in self._parameters):
            if self._kind and self._source.waiting:
                # The model is called again before the backward pass: one step.
                self._source.forward_begins(batch)
                return
            self._abandon()
        if not self._micro:
            self._begin_step()
        self._micro.append(batch)
        self._examples += batch * self._world
        if self._kind:
            self._source.forward_begins(batch)

    def _abandon(self) -> None:
        """The gradients were cleared and no update was made: that was no step."""
        if self._kind:
            self._source.cancel()
            self._dropped += 1
        self._examples -= sum(self._micro) * self._world
        self._kind, self._micro = "", []

    def _begin_step(self) -> None:
        self._source = self._choose()
        self._kind = self._wanted()
        proxy = self._kind == "proxy"
        self._inside.only = frozenset(self._norms) if proxy else None
        if self._kind:
            self._source.begin(self._lens_for, self._usual)

    def _choose(self) -> Source:
        if self._across is not None:
            return self._across
        return self._accumulated if len(self._usual) > 1 else self._inside

    def _wanted(self) -> str:
        """How to measure the step that begins; "" for not at all."""
        if self._source is self._inside and self._inside.coupled:
            return ""
        turn = self._measured % METRICS_EVERY == METRICS_EVERY - 1
        turn &= self._measured > METRICS_EVERY  # first what the plain ones cost
        kind = "metrics" if turn and self._sees_metrics() else "norms"
        if self._across is not None and self._next:
            return kind if self._budget.steps >= self._next else ""
        if self._budget.affords(kind):
            return kind
        between = self._proxy and self._measured and self._source is self._inside
        return "proxy" if between and self._budget.affords("proxy", 0.5) else ""

    def _sees_metrics(self) -> bool:
        if self._metrics is not None:
            return self._metrics
        if self.optimizer is None:
            return False
        groups = self.optimizer.param_groups
        signed = "sign" in type(self.optimizer).__name__.lower()
        return signed or any("betas" in group for group in groups)

    def _lens_for(self, sizes: tuple[int, ...]) -> Lens | None:
        if self._kind != "metrics" or len(sizes) < 2:
            return None
        return Lens(self._parameters, root_moments(self.optimizer), sizes)

    def _update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer is about to update: the step's gradients are complete."""
        if self.optimizer is None and not any(
            id(p) in self._ids
            for group in optimizer.param_groups
            for p in group["params"]
        ):
            return
        if any(callable(a) for a in (*args[1:], *kwargs.values())):
            self._warn(
                "closure",
                "the optimizer computes gradients itself, at several weights in one "
                "step (closure): nothing is measured",
            )
            self._abandon()
            return
        if not self._micro:
            self._quiet += 1
            if self._quiet == QUIET:
                self._warn(
                    "quiet",
                    f"{QUIET} updates, and no forward pass of the model was seen: give "
                    "NoiseMonitor the module that the loop calls: the wrapped one, or "
                    "compiled = torch.compile(model) (not model.compile())",
                )
            return
        kind, self._kind = self._kind, ""
        if kind:
            self._finish(kind)
        self._usual, self._micro = tuple(self._micro), []
        self._budget.step(kind)

    def _finish(self, kind: str) -> None:
        source = self._source
        if source is self._across:
            source.wish = self._budget.interval(kind)
        scale = float(self._scaler.get_scale()) if self._scaler is not None else 1.0
        sample = source.finish(self._micro, scale)
        if source is self._across:
            self._next = self._budget.steps + max(1, round(source.agreed))
        if source is self._inside and self._inside.coupled:
            self._warn(
                "coupled",
                "BatchNorm makes an example's gradient depend on its batch: nothing is "
                "measured inside a batch; accumulate two or more micro-batches, train "
                "on several ranks, or use GroupNorm",
            )
        alike = self._inside.neighbours.alike
        if alike is not None:
            self._warn(
                "neighbours",
                f"groups of neighbouring examples differ {alike:.2f} x as much as "
                "groups taken across the batch: examples are not independent (packed, "
                "sorted, repeated), and the noise scale is off; shuffle the examples, "
                "or call what belongs together one example",
            )
        if sample is None:
            return
        if not sample.finite:
            self._skipped += 1
        elif sample.zero:
            self._zero += 1
        else:
            self._note(sample, kind)

    def _note(self, sample: Sample, kind: str) -> None:
        if self._proxy:
            signal, noise = sample.signal[self._norms], sample.noise[self._norms]
            self._norm_ledger.add(self._examples, sample.batch, signal, noise)
        if kind == "proxy":
            return
        self._measured += 1
        self._batch = sample.batch
        self._ledger.add(self._examples, sample.batch, sample.signal, sample.noise)
        for name, (signal, noise) in sample.metrics.items():
            ledger = self._metric_ledgers.setdefault(name, Ledger())
            ledger.add(self._examples, sample.batch, signal, noise)
        self._gain_batch = sample.gain_batch or self._gain_batch
        if self._source.missing and self._measured % 50 == 1:
            self._gradient_share = self._seen_share()
        share = self._coverage().parameters
        if share < SEEN and self._measured > LEARNED:
            self._warn(
                "coverage",
                f"only {share:.0%} of the parameters can be seen: why, is told in "
                ".read().coverage.missing; accumulated micro-batches show all of them",
            )

    def _seen_share(self) -> float:
        """Share of the gradient's squared norm in parameters that are seen."""
        found = [
            (i, square(p.grad))
            for i, p in enumerate(self._parameters)
            if p.grad is not None and not p.grad.is_sparse
        ]
        whole = float(sum(n for _, n in found))
        seen = float(sum(n for i, n in found if i not in self._source.missing))
        return seen / whole if whole > 0 else 1.0

    def _coverage(self) -> Coverage:
        missing = self._source.missing
        sizes = [p.numel() for p in self._parameters]
        lost = sum(sizes[i] for i in missing)
        names = self._names.parameters
        return Coverage(
            parameters=1 - lost / max(sum(sizes), 1),
            gradient=self._gradient_share if missing else 1.0,
            missing={names[i]: why for i, why in missing.items()},
            verified=self._source.verified,
        )

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            self._trouble = text
            warnings.warn(f"NoiseMonitor: {text}", stacklevel=2)
