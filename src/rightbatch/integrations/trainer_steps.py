"""A Trainer's steps, of a batch that changes, counted in steps of today's batch.

A Trainer counts updates, and finds everything by that count: the end of the run, the
place in the data after a resume, the learning rate. With another batch all of it is
off. Here its count stays one of *today's* batches: an update of twice the batch is two
steps. Then end, scheduler, resume, logging and saving go by examples, as they are.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

from transformers.trainer_callback import TrainerCallback

from rightbatch.integrations.following import (
    AlignedController,
    check_multiples,
    kept,
    schedule_of,
)
from rightbatch.integrations.refusals import refuse
from rightbatch.integrations.trainer_job import BY_METRIC, scheduler_kind
from rightbatch.integrations.trainer_loss import TrainerLoss
from rightbatch.job.optimizers import first_rate
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.schedules.by_examples import ByExamples
from rightbatch.schedules.schedule import Schedule

WHAT = "this schedule cannot be followed in a Trainer"


class TrainerSteps(TrainerCallback):
    """Follows a schedule by ``gradient_accumulation_steps``.

    The batch is a multiple of today's: an epoch of the Trainer has no more updates than
    that makes. It changes where a step may begin: elsewhere the Trainer would make a
    step of a part of the micro-batches, divided by all.

    Args:
        trainer: Not training yet.
        schedule: To follow.
        rule: How the optimizer's numbers follow, see `Controller`.

    Attributes:
        monitor: For a live schedule; set before the run begins.
        saved: What `state` gave, where a checkpoint is gone on from.

    Raises:
        SettingError: The schedule has batches that are no multiples of today's, or the
            Trainer's gradient does not keep its size when it accumulates more.
    """

    def __init__(self, trainer: Any, schedule: Schedule | str, rule: str) -> None:
        args = trainer.args
        self.trainer, self.rule = trainer, rule
        self.unit: int = args.gradient_accumulation_steps
        self.today: int = trainer.get_total_train_batch_size(args)
        schedule = schedule_of(schedule, self.today, len(trainer.train_dataset))
        smallest = "arguments of the smallest batch, with the learning rate for that"
        check_multiples(schedule, self.today, fix=smallest)
        kind = scheduler_kind(args)
        decays = hasattr(schedule, "rate") and "constant" not in kind
        sampling = getattr(args, "train_sampling_strategy", "")
        refuse(
            WHAT,
            (decays, f"it has a decay, and so has {kind!r}", "'constant'"),
            (kind in BY_METRIC, f"lr_scheduler_type={kind!r}", "one that counts steps"),
            (args.fp16, "fp16=True, whose scaler leaves out updates", "bf16=True"),
            (sampling == "batch_rebalance", f"sampling {sampling!r}", "'random'"),
        )
        loss = TrainerLoss(trainer)
        if not loss.right:
            raise loss.wrong()
        self.schedule, self.monitor, self.saved = schedule, None, None
        self._length = len(loss.loader)
        self._per_epoch = -(-self._length // self.unit)
        self._controller: AlignedController | None = None
        self._at_reference = ExitStack()
        self._seen = self._updates = 0  # micro-batches of the epoch; of the run
        # Where the count stood, and the updates: when the run began, and last logged.
        self._began = self._logged = (0, 0)
        self._lr: float | None = None

    monitor: NoiseMonitor | None
    saved: dict[str, Any] | None

    @property
    def controller(self) -> AlignedController:
        """Of the run in progress."""
        assert self._controller is not None
        return self._controller

    def state(self) -> dict[str, Any]:
        """For a checkpoint of the Trainer."""
        made = {} if self._controller is None else self._controller.state_dict()
        return {"controller": made, "updates": self._updates}

    def on_train_begin(self, args: Any, state: Any, *_: Any, **_other: Any) -> None:
        """A run begins, or goes on from a checkpoint."""
        trainer, steps, saved = self.trainer, state.global_step, self.saved
        k = args.gradient_accumulation_steps
        refuse(
            WHAT,
            (k != self.unit, f"a run that broke off has left {k=}", "a new Trainer"),
            (
                steps and not saved,
                f"the checkpoint of step {steps:,} is of a run without a schedule",
                "resume from one of a run with the same arguments and schedule",
            ),
            (steps and args.ignore_data_skip, "ignore_data_skip=True", "False"),
        )
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        with kept(optimizer) if saved else nullcontext():
            self._controller = AlignedController(
                self.schedule,
                optimizer,
                self.today,
                monitor=self.monitor,
                rule=self.rule,
                scheduler=ByExamples(trainer.lr_scheduler, batch_size=self.today),
                largest=max(1, self._length // self.unit) * self.today,
                multiple=self.today,
                model=trainer.model_wrapped,
            )
        if saved:
            self._controller.load_state_dict(saved["controller"])
        self._updates = saved["updates"] if saved else 0
        self._began = self._logged = steps, self._updates
        self._accumulate()

    def on_epoch_begin(self, args: Any, state: Any, *_: Any, **_other: Any) -> None:
        """At its beginning, or where a checkpoint was made."""
        self._seen = state.global_step % self._per_epoch * self.unit

    def on_substep_end(self, *_: Any, **_other: Any) -> None:
        """One micro-batch more."""
        self._seen += 1

    def on_optimizer_step(self, *_: Any, **_other: Any) -> None:
        """Until the step ends, where the scheduler steps, the rates are today's."""
        self._lr = first_rate(self.controller.numbers.optimizer)
        self._at_reference.enter_context(self.controller.numbers.at_reference())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the step, move the rate, decide about the next."""
        before = state.global_step - 1
        self._seen += 1
        self._updates += 1
        # Less than asked for, where the epoch has no more.
        more = -(-self._seen // self.unit) - before % self._per_epoch - 1
        # The last update may go past the end, which the scheduler must not.
        for _step in range(min(more, max(state.max_steps - before - 1, 0))):
            self.trainer.lr_scheduler.step()
        self._at_reference.close()
        state.global_step += more
        # The Trainer sees a multiple only where the count stands on it.
        for name, should in (
            ("logging", "log"),
            ("eval", "evaluate"),
            ("save", "save"),
        ):
            every = getattr(state, f"{name}_steps")
            by_steps = getattr(args, f"{name}_strategy").value == "steps" and every
            delay = args.eval_delay if name == "eval" else 0
            if by_steps and state.global_step // every > before // every:
                late = state.global_step >= delay
                setattr(control, f"should_{should}", late)
        controller, ended = self.controller, self._seen == self._length
        controller.seen = 0 if ended else self._seen // self.unit
        controller(state.global_step * self.today)
        self._accumulate()

    def on_log(self, args: Any, state: Any, _: Any, logs: Any, **_other: Any) -> None:
        """Losses are sums over updates, which the Trainer divides by the count."""
        now, new = (state.global_step, self._updates), {}
        for name, since in (("loss", self._logged), ("train_loss", self._began)):
            if name in logs:
                made = max(now[1] - since[1], 1)
                new = {name: logs[name] * (now[0] - since[0]) / made}
                self._logged = now
        if "loss" in new and self._lr is not None:
            new["learning_rate"] = self._lr
        if new:
            new["batch/updates"] = float(self._updates)
            new["batch/size"] = float(self.controller.batch_size)
            logs.update(new)
            state.log_history[-1].update(new)

    def on_train_end(self, args: Any, *_: Any, **_other: Any) -> None:
        """The next run begins like this one."""
        args.gradient_accumulation_steps = self.unit

    def _accumulate(self) -> None:
        units = self.controller.batch_size // self.today
        self.trainer.args.gradient_accumulation_steps = units * self.unit
