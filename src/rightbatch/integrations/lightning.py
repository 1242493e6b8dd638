"""The batch inside a Lightning trainer: measured, planned, followed."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset

from rightbatch.core.errors import MissingExtraError, SettingError
from rightbatch.core.torch_private import is_compiled
from rightbatch.integrations.following import (
    AlignedController,
    check_decays,
    check_multiples,
    kept,
    planned,
    schedule_of,
)
from rightbatch.integrations.lightning_job import SAMPLERS, THEIRS, job, job_of
from rightbatch.integrations.refusals import refuse, refuse_findings
from rightbatch.job.job import copied_module
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.schedules.by_examples import ByExamples
from rightbatch.schedules.schedule import Schedule
from rightbatch.training.plan import Plan

NEEDED = (2, 5)
try:
    import lightning.pytorch as pl
except ImportError:
    try:
        import pytorch_lightning as pl
    except ImportError as error:
        raise MissingExtraError(
            "rightbatch.integrations.lightning needs Lightning",
            fix="pip install 'rightbatch[lightning]'",
        ) from error
if tuple(map(int, pl.__version__.split(".")[:2])) < NEEDED:
    raise MissingExtraError(
        f"Lightning {pl.__version__} is not supported: 2.5 and later are",
        fix="pip install 'rightbatch[lightning]'",
    )

__all__ = ["Callback", "job"]

NEVER = sys.maxsize  # batches: a frequency at which Lightning steps no scheduler
# They set the accumulation too, wherever the epoch stands.
RIVALS = {"GradientAccumulationScheduler", "StochasticWeightAveraging"}


class WatchedStep(nn.Module):
    """A training step as a module's call, with the outputs that its loss is made of.

    A loss has no examples any more; the outputs of what the step calls have, and by
    those a monitor verifies what it sees.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.step = module, module.training_step
        self._outputs: list[Any] = []
        self._inside, self._runs = 0, False
        # Compiled parts would be compiled once more for the hooks, and show nothing.
        parts = () if is_compiled(module) else module.modules()
        self._hooks = {part: self._attach(part) for part in parts}
        self._outermost: set[nn.Module] = set()

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        """What the step returns, and those outputs."""
        self._outputs, self._inside, self._runs = [], 0, True
        try:
            result = self.step(*args, **kwargs)
        finally:
            outputs, self._outputs, self._runs = self._outputs, [], False
        if self._outermost:  # the others cost time, and show nothing
            self.remove_hooks(keep=self._outermost)
        return result, outputs

    def remove_hooks(self, keep: Collection[nn.Module] = ()) -> None:
        """Those of all modules but some."""
        for part in [part for part in self._hooks if part not in keep]:
            for hook in self._hooks.pop(part):
                hook.remove()

    def _attach(self, part: nn.Module) -> tuple[Any, Any]:
        return (
            part.register_forward_pre_hook(self._enter),
            part.register_forward_hook(self._leave, always_call=True),
        )

    def _enter(self, part: nn.Module, args: Any) -> None:
        self._inside += 1

    def _leave(self, part: nn.Module, args: Any, output: Any) -> None:
        self._inside -= 1
        if self._runs and not self._inside:  # nothing but the step has called it
            self._outputs.append(output)
            self._outermost.add(part)


class Callback(pl.Callback):
    """Measures the noise of a Lightning run, and makes its batch follow a schedule.

    Noise with its interval goes to every logger, at ``trainer.log_every_n_steps``. A
    schedule is followed by ``trainer.accumulate_grad_batches``, changed only where a
    step may begin: each step's gradient is the mean over its batch, the last of an
    epoch too. Learning rate and schedulers follow by examples. All of it is in the
    checkpoint. Works with Lightning 2.5 and 2.6, as ``lightning`` and as
    ``pytorch_lightning``.

    Args:
        monitor: True, a `NoiseMonitor` of your own, or None: nothing is measured.
        schedule: The batch along the run, or one word such as
            ``"ramp:32:512:3epochs"``.
        plan: A `Plan` or its file instead: its batch and rate from today's.
        raise_on: Codes of `check` that end the run before it begins, such as
            ``("RB105",)``.
        rule: How the learning rate follows the batch.
        overhead: Share of the time that measuring may take.

    Attributes:
        monitor: The monitor, once training has begun.
        controller: What follows the schedule; its ``changes`` say where and why.
        examples: Seen so far, over all ranks; of a run with a schedule.

    Raises:
        SettingError: What was asked for cannot be done with this trainer or module.
        JobError: The run has a finding of ``raise_on``.

    Note:
        With manual optimization only a monitor works, and only where ``training_step``
        calls the module itself (``self(x)``); otherwise give one of what it calls.

    Example:
        ::

            ramp = rb.schedules.Ramp(32, 512, 100_000)
            follow = rb.integrations.lightning.Callback(schedule=ramp)
            lightning.Trainer(callbacks=[follow]).fit(module, data)
    """

    def __init__(
        self,
        monitor: NoiseMonitor | bool | None = True,
        schedule: Schedule | str | None = None,
        plan: Plan | str | Path | None = None,
        raise_on: tuple[str, ...] = (),
        *,
        rule: str = "auto",
        overhead: float = 0.02,
    ) -> None:
        if schedule is not None and plan is not None:
            raise SettingError("give a schedule or a plan, not both")
        self.monitor: Any = monitor
        self._measures = monitor is True
        self.controller: AlignedController | None = None
        self.examples = 0
        self._schedule, self._rule, self._overhead = schedule, rule, overhead
        self._plan, self._raise_on = plan, raise_on
        self._schedulers: list[ByExamples] = []
        self._named = set[str]()  # what has been logged
        self._saved: dict[str, Any] = {}
        self._undo: list[Any] = []  # what puts trainer and module back

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measuring and following begin, or go on from a checkpoint."""
        if self._raise_on:
            copied, loader = copied_module(pl_module), trainer.train_dataloader
            subject = job_of(copied, loader, trainer=trainer)
            refuse_findings(
                subject,
                self._raise_on,
                micro_batch=loader.batch_size,
                accumulation=trainer.accumulate_grad_batches,
                schedule=self._schedule,
            )
        if self._measures:
            self.monitor = self._watch(trainer, pl_module)
        if self.monitor and "monitor" in self._saved:
            self.monitor.load_state_dict(self._saved["monitor"])
        if self._schedule is not None or self._plan is not None:
            self._follow(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Between two steps: what the batch is from now on."""
        controller, seen = self.controller, trainer.fit_loop.batch_idx + 1
        last = trainer.is_last_batch or seen >= trainer.num_training_batches
        if controller is not None:
            self.examples += controller.multiple
        if seen % trainer.accumulate_grad_batches and not last:
            return  # within a step
        steps = trainer.global_step
        if not pl_module.automatic_optimization:  # there several updates may be a step
            steps = trainer.fit_loop.total_batch_idx + 1
        if steps % (trainer.log_every_n_steps or NEVER) == 0:
            known = {} if controller is None else {"batch/size": controller.batch_size}
            numbers = known | (self.monitor.log() if self.monitor else {})
            # What is not known any more must not keep its last value.
            self._named |= numbers.keys()
            pl_module.log_dict({n: numbers.get(n, math.nan) for n in self._named})
        if controller is None:
            return
        for scheduler in self._schedulers:
            scheduler.step(self.examples - scheduler.examples)
        controller.seen = 0 if last else seen
        controller(self.examples)
        trainer.accumulate_grad_batches = controller.batch_size // controller.multiple

    def on_before_optimizer_step(
        self, trainer: Any, pl_module: Any, optimizer: Any
    ) -> None:
        """The last step of an epoch may have fewer micro-batches: still their mean."""
        whole = trainer.accumulate_grad_batches
        there = (trainer.fit_loop.batch_idx + 1) % whole
        if self.controller is None or not there:
            return
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(whole / there)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Trainer and module are as before."""
        self._saved = {}  # not for another run with this callback
        while self._undo:
            self._undo.pop()()

    def on_exception(
        self, trainer: Any, pl_module: Any, exception: BaseException
    ) -> None:
        """The same, after an error."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        state: dict[str, Any] = {"examples": self.examples}
        if isinstance(self.monitor, NoiseMonitor):
            state["monitor"] = self.monitor.state_dict()
        if self.controller is not None:
            state["controller"] = self.controller.state_dict()
            state["schedulers"] = [s.state_dict() for s in self._schedulers]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict` when training begins."""
        self._saved = state_dict

    def _watch(self, trainer: Any, module: Any) -> NoiseMonitor:
        """A monitor of what the trainer calls; a wrapped module is seen there."""
        model, manual = trainer.model, not module.automatic_optimization
        if manual and model is not module:
            raise SettingError(
                "manual optimization of a wrapped module cannot be measured",
                why="the wrapper's call has the updates in it",
                fix="Callback(monitor=None)",
            )
        if model is module and not manual:
            model = step = WatchedStep(module)
            replaced = vars(module).pop("training_step", None)  # a compiled one

            @functools.wraps(step.step)
            def training_step(*args: Any, **kwargs: Any) -> Any:
                return step(*args, **kwargs)[0]

            def put_back() -> None:
                del vars(module)["training_step"]
                if replaced is not None:
                    module.training_step = replaced

            module.training_step = training_step
            self._undo += [put_back, step.remove_hooks]
        loader, population = trainer.train_dataloader, None
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, SAMPLERS) and not getattr(sampler, "replacement", False):
            population = len(loader.dataset)  # an epoch repeats no example
        monitor = NoiseMonitor(
            model, trainer.optimizers, self._overhead, population=population
        )
        self._undo.append(monitor.close)
        return monitor

    def _follow(self, trainer: Any, module: Any) -> None:
        """Batch, rate and schedulers are ours from here on."""
        if "controller" not in self._saved:
            self._saved = {}
        _check(trainer, module, resumed=bool(self._saved))
        loader, before = trainer.train_dataloader, trainer.accumulate_grad_batches
        unit = loader.batch_size * trainer.world_size
        today, optimizer = unit * before, trainer.optimizers[0]
        if self._plan is not None:
            begun = trainer.global_step > 0
            settings = planned(self._plan, today, optimizer, begun=begun)
        else:
            schedule = schedule_of(self._schedule, today, len(loader.dataset))
            settings = dict[str, Any](schedule=schedule, rule=self._rule)
        check_multiples(settings["schedule"], unit)
        self._schedulers, self.examples = [], 0
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                continue  # follows a metric: the factor it makes is kept
            batches = config.frequency * trainer.num_training_batches
            if config.interval == "step":  # where a step ends, of today's
                batches = math.lcm(config.frequency, before)
            scheduler = ByExamples(config.scheduler, batch_size=batches * unit)
            self._schedulers.append(scheduler)
            self._undo.append(
                functools.partial(setattr, config, "frequency", config.frequency)
            )
            config.frequency = NEVER
        own = [scheduler.scheduler for scheduler in self._schedulers]
        check_decays(settings["schedule"], own)
        with kept(optimizer) if self._saved else nullcontext():
            self.controller = controller = AlignedController(
                optimizer=optimizer,
                batch_size=today,
                monitor=self.monitor or None,
                scheduler=self._schedulers,
                largest=unit * trainer.num_training_batches,
                multiple=unit,
                model=trainer.model,
                **settings,
            )
        if self._saved:
            controller.load_state_dict(self._saved["controller"])
            self.examples = self._saved["examples"]
            pairs = zip(self._schedulers, self._saved["schedulers"], strict=True)
            for scheduler, state in pairs:
                scheduler.load_state_dict(state)
        trainer.accumulate_grad_batches = controller.batch_size // unit
        self._undo.append(lambda: setattr(trainer, "accumulate_grad_batches", before))


def _check(trainer: Any, module: Any, *, resumed: bool) -> None:
    """Refuse a schedule where it cannot be followed exactly.

    Raises:
        SettingError: It cannot.
    """
    loader = trainer.train_dataloader
    size, batches = getattr(loader, "batch_size", None), trainer.num_training_batches
    rivals = {type(c).__name__ for c in trainer.callbacks} & RIVALS
    ragged = size and not loader.drop_last and batches != math.inf
    if ragged and not isinstance(loader.dataset, IterableDataset):
        ragged = batches * size > len(loader.sampler)
    made, manual = trainer.global_step, not module.automatic_optimization
    by_itself = trainer.strategy.handles_gradient_accumulation
    own_way = not type(module).lr_scheduler_step.__module__.startswith(THEIRS)
    whole = "DataLoader(..., drop_last=True): its examples would count more"
    refuse(
        "a schedule cannot be followed here",
        (manual, "manual optimization: training_step steps", "a monitor alone"),
        (by_itself, f"{type(trainer.strategy).__name__} accumulates by itself", "DDP"),
        (trainer.max_steps > 0, "max_steps, which are of no one batch", "max_epochs"),
        (made and not resumed, f"{made} steps without this schedule", "a new Trainer"),
        (rivals, f"{', '.join(rivals)} sets the accumulation too", "leave it out"),
        (own_way, "lr_scheduler_step is the module's own", "leave it out"),
        (not size, f"{type(loader).__name__} without batch_size", "one DataLoader"),
        (batches == math.inf, "data without a length", "a map-style data set"),
        (ragged, "the last batch of an epoch is smaller", whole),
    )
