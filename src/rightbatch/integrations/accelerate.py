"""A batch that changes in a loop with Hugging Face Accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rightbatch.core.errors import MissingExtraError, SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.integrations.following import (
    AlignedController,
    check_decays,
    check_multiples,
    planned,
    schedule_of,
)
from rightbatch.integrations.refusals import refuse, refuse_findings
from rightbatch.job.job import Job
from rightbatch.job.optimizers import first_rate
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.schedules.by_examples import ByExamples
from rightbatch.schedules.schedule import Constant, Schedule
from rightbatch.training.controller import Change, Controller
from rightbatch.training.plan import Plan
from rightbatch.training.ranks import Ranks

try:
    from accelerate import Accelerator
except ImportError as error:
    raise MissingExtraError(
        "rightbatch.integrations.accelerate needs accelerate",
        fix="pip install 'rightbatch[transformers]'",
    ) from error

__all__ = ["BatchScheduler", "follow"]

OTHER_ENGINES = ("DEEPSPEED", "MEGATRON_LM", "XLA")  # they count micro-batches too


def follow(
    accelerator: Any,
    optimizer: Any,
    schedule: Schedule | str | None = None,
    *,
    loader: Any,
    batch_size: int | None = None,
    scheduler: Any = None,
    monitor: NoiseMonitor | None = None,
    plan: Plan | str | Path | None = None,
    rule: str = "auto",
    job: Job | None = None,
    raise_on: tuple[str, ...] = (),
) -> BatchScheduler:
    """Let batch and learning rate of an Accelerate loop follow a schedule or a plan.

    The loop stays as it is, but that ``scheduler.step()`` is now the step of what this
    returns. It is registered with the accelerator, whose ``save_state`` keeps it.

    Run on accelerate 1.15.0, without and with DDP.

    Args:
        accelerator: Of the loop, which uses ``accelerator.accumulate(model)``.
        optimizer: As ``accelerator.prepare`` returned it.
        schedule: The batch along the run, over all ranks, in whole micro-batches: what
            the loader gives all ranks at once; or one word, such as
            ``"ramp:32:512:3epochs"``. Default: the plan's, or no change.
        loader: As ``accelerator.prepare`` returned it.
        batch_size: The batch that the optimizer's numbers were chosen for; default: a
            micro-batch times the accelerator's accumulation.
        scheduler: The learning-rate scheduler, as prepared. It is stepped by examples,
            as often as Accelerate steps it (once a process) where the batch stays.
        monitor: Of the prepared model: the noise, for a live schedule and for `log`.
        plan: A `Plan`, or its file; gives the batch where there is no schedule, and
            how the learning rate follows.
        rule: How the learning rate follows the batch, without a plan.
        job: The same training as a `Job`, which ``raise_on`` looks at.
        raise_on: Codes of checks, such as ``("RB105",)``, that must find nothing.

    Raises:
        SettingError: The accelerator's engine accumulates by itself; the loader's
            micro-batches do not fit; or schedule, plan and optimizer contradict each
            other.
        JobError: A check of ``raise_on`` found something.

    Example:
        >>> import torch, rightbatch as rb
        >>> from accelerate import Accelerator
        >>> from rightbatch.integrations.accelerate import follow
        >>> accelerator, net = Accelerator(cpu=True), torch.nn.Linear(1, 1)
        >>> loader = torch.utils.data.DataLoader(torch.rand(64, 1), batch_size=4)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> net, sgd, loader = accelerator.prepare(net, sgd, loader)
        >>> grow = rb.schedules.Stages(((0, 8), (32, 16)))
        >>> batches = follow(accelerator, sgd, grow, loader=loader, batch_size=8)
        >>> for x in loader:
        ...     with accelerator.accumulate(net):
        ...         accelerator.backward(net(x).square().mean())
        ...         sgd.step()
        ...         if change := batches.step():
        ...             print(change)
        ...         sgd.zero_grad()
        batch 8 -> 16, lr 0.2: stage 2 of 2
    """
    micro = _micro_batch(accelerator, loader)
    accumulated = micro * accelerator.gradient_accumulation_steps
    today = whole_number(batch_size or accumulated, "batch_size")
    optimizer = getattr(optimizer, "optimizer", optimizer)
    inner = None if scheduler is None else _by_examples(scheduler, accelerator, today)
    settings: dict[str, Any] = {"schedule": Constant(today), "rule": rule}
    if plan is not None:
        settings = planned(plan, today, optimizer)
    if schedule is not None:
        length = len(loader.dataset)
        settings["schedule"] = schedule_of(schedule, today, length)
    check_multiples(settings["schedule"], micro)
    check_decays(settings["schedule"], [] if inner is None else [inner.scheduler])
    if monitor is not None and Ranks(monitor.model).size != accelerator.num_processes:
        raise SettingError(
            "the monitor watches the model before it was prepared",
            why="every process would see another noise, and another batch",
            fix="NoiseMonitor(model, optimizer) after accelerator.prepare",
        )
    if raise_on:
        if job is None:
            raise SettingError("raise_on needs a job to look at", fix="job=rb.Job(...)")
        split = micro // accelerator.num_processes
        refuse_findings(job, raise_on, micro_batch=split, schedule=settings["schedule"])
    controller = AlignedController(
        optimizer=optimizer,
        batch_size=today,
        monitor=monitor,
        scheduler=inner,
        largest=micro * len(loader),
        multiple=micro,
        model=None if monitor is None else monitor.model,
        **settings,
    )
    batches = BatchScheduler(accelerator, controller, loader, micro)
    accelerator.register_for_checkpointing(batches)
    return batches


class BatchScheduler:
    """The batch of an Accelerate loop, stepped where its learning rate would be.

    Accelerate ends a step where its count of micro-batches is a multiple of the
    accumulation: changed at another count, the next step is cut short, with a part of
    the gradient. So the count begins anew here with every step, and the last step of an
    epoch is the mean of the micro-batches that are left. Made by `follow`.

    Attributes:
        controller: What decides; its ``changes`` are the decisions.
        examples: Seen so far, over all ranks.
        micro_batches_in_epoch: Of every rank so far: after a resume, those that
            ``accelerator.skip_first_batches`` has to skip.
    """

    def __init__(
        self, accelerator: Any, controller: Controller, loader: Any, micro: int
    ) -> None:
        self.controller, self.examples, self.micro_batches_in_epoch = controller, 0, 0
        self._accelerator, self._micro, self._epoch = accelerator, micro, len(loader)
        self._schedulers = controller.numbers.schedulers
        self._begin_step()

    def __repr__(self) -> str:
        return (
            f"BatchScheduler(batch_size={self.batch_size}, examples={self.examples}, "
            f"schedule={self.controller.schedule})"
        )

    @property
    def batch_size(self) -> int:
        """Examples of the step that is being made, over all ranks."""
        return self._accelerator.gradient_accumulation_steps * self._micro

    def step(self) -> Change | None:
        """After ``optimizer.step()``; between the micro-batches it does nothing.

        Returns:
            What was decided about the next step, if there was anything to decide.

        Raises:
            SettingError: The loop has done something that makes steps inexact.
        """
        accelerator = self._accelerator
        if not accelerator.sync_gradients:
            return None
        planned, made = accelerator.gradient_accumulation_steps, accelerator.step
        over = accelerator.gradient_state.end_of_dataloader
        self.micro_batches_in_epoch += planned
        left = self._epoch - self.micro_batches_in_epoch
        if made not in (planned, 0) or over != (left == 0):
            raise SettingError(
                "the step had other micro-batches than were planned",
                seen=f"{planned} planned, {made} counted; {left} left in the "
                f"epoch, whose loader has {'' if over else 'not '}ended",
                fix="call step() once after every optimizer.step(), go through whole "
                "epochs, and after a resume accelerator.skip_first_batches(loader, "
                "batches.micro_batches_in_epoch)",
            )
        if [_made(s) for s in self._schedulers] != self._stood:
            raise SettingError(
                "the learning-rate scheduler was stepped elsewhere too",
                seen=f"at {_made(self._schedulers[0])}, left at {self._stood[0]}",
                why="it is stepped by examples here, and would be ahead of them",
                fix="take scheduler.step() out of the loop",
            )
        self.micro_batches_in_epoch *= not over
        seen = planned * self._micro
        self.examples += seen
        for scheduler in self._schedulers:
            scheduler.step(seen)
        change = self.controller(self.examples)
        self._begin_step()
        return change

    def log(self) -> dict[str, float]:
        """Plain numbers for ``accelerator.log``: batch, rate, and the monitor's."""
        rate = first_rate(self.controller.numbers.optimizer)
        monitor = self.controller.monitor
        return (
            {"batch/size": float(self.batch_size), "batch/examples": self.examples}
            | ({} if rate is None else {"batch/lr": rate})
            | ({} if monitor is None else monitor.log())
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, which ``accelerator.save_state`` keeps.

        Raises:
            SettingError: A step is half made; its gradient would not be kept.
        """
        if self._accelerator.step:
            raise SettingError(
                "the state cannot be saved between the micro-batches of a step",
                seen=f"{self._accelerator.step} micro-batches made",
                why="what they have accumulated is not part of the state",
                fix="save_state() behind step(), where accelerator.sync_gradients",
            )
        monitor = self.controller.monitor
        return {
            "examples": self.examples,
            "micro_batches_in_epoch": self.micro_batches_in_epoch,
            "controller": self.controller.state_dict(),
            "schedulers": [s.state_dict() for s in self._schedulers],
            "monitor": None if monitor is None else monitor.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        On another number of ranks too, where there is no scheduler: Accelerate steps
        one as often as there are ranks, so its steps would be of other examples.

        Raises:
            SettingError: The batch then cannot be made of the micro-batches now, or the
                rate would go by another batch.
        """
        check_multiples(Constant(state["controller"]["batch_size"]), self._micro)
        self.examples = state["examples"]
        self.micro_batches_in_epoch = state["micro_batches_in_epoch"]
        self.controller.load_state_dict(state["controller"])
        for scheduler, saved in zip(self._schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        if self.controller.monitor is not None and state["monitor"] is not None:
            self.controller.monitor.load_state_dict(state["monitor"])
        self._begin_step()

    def _begin_step(self) -> None:
        """Say how many micro-batches the next step has, before the first of them."""
        left = self._epoch - self.micro_batches_in_epoch
        accumulation = min(self.controller.batch_size // self._micro, left)
        self._accelerator.gradient_accumulation_steps = accumulation
        self._accelerator.step = 0
        self._stood = [_made(scheduler) for scheduler in self._schedulers]


def _made(scheduler: ByExamples) -> int | None:
    """The steps that torch's scheduler has made."""
    return getattr(scheduler.scheduler, "last_epoch", None)


def _micro_batch(accelerator: Any, loader: Any) -> int:
    """What the loader gives all ranks at once, if steps can be made exactly of it."""
    what, kind = "the batch of this loop cannot be changed", type(accelerator).__name__
    other = not isinstance(accelerator, Accelerator)
    refuse(what, (other, f"first a {kind}, which is no Accelerator", "accelerator"))
    engine, prepared = accelerator.distributed_type.name, "loader= as prepared"
    no_batch = not hasattr(loader, "total_batch_size")
    no_length = not hasattr(loader.dataset, "__len__")
    refuse(
        what,
        (
            engine in OTHER_ENGINES,
            f"{engine} has its own count of micro-batches",
            "DDP",
        ),
        (no_batch, f"{type(loader).__name__} does not say its batch", prepared),
        (no_length, "data without a length", "a map-style data set"),
    )
    micro, length = loader.total_batch_size, len(loader.dataset)
    sampler = getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler)
    ragged = length % micro and not sampler.drop_last
    seen = f"the last micro-batch of an epoch is smaller: {length} examples by {micro}"
    fix = "DataLoader(..., drop_last=True): they would weigh more, or be repeated"
    refuse(what, (ragged, seen, fix))
    return micro


def _by_examples(scheduler: Any, accelerator: Any, today: int) -> ByExamples:
    """A step for as many examples as Accelerate makes one for at today's batch."""
    inner = getattr(scheduler, "scheduler", None)
    if inner is None:
        return ByExamples(scheduler, batch_size=today)
    # AcceleratedScheduler makes a step for every process, unless batches are split.
    by_process = scheduler.step_with_optimizer and not scheduler.split_batches
    ranks = accelerator.num_processes if by_process else 1
    return ByExamples(inner, batch_size=max(1, today // ranks))
