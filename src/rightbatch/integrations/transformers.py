"""Hugging Face's Trainer: measured, tuned, and with a batch that may change."""

from __future__ import annotations

import math
import warnings
from typing import Any

from rightbatch.core.errors import MissingExtraError
from rightbatch.integrations.refusals import refuse, refuse_findings
from rightbatch.integrations.trainer_arguments import apply_plan
from rightbatch.integrations.trainer_job import job
from rightbatch.integrations.trainer_loss import TrainerLoss, refuse_unsupported
from rightbatch.noise.monitor import NoiseMonitor
from rightbatch.schedules.schedule import Schedule

try:
    import transformers
    from transformers.trainer_callback import ExportableState, TrainerCallback

    from rightbatch.integrations.trainer_steps import TrainerSteps
except ImportError as error:
    raise MissingExtraError(
        "rb.integrations.transformers needs transformers and accelerate",
        seen=str(error),
        fix="pip install 'rightbatch[transformers]'",
    ) from error

__all__ = ["Callback", "apply_plan", "job"]

refuse(
    "this version of transformers is not supported",
    (
        int(transformers.__version__.partition(".")[0]) < 5,
        f"{transformers.__version__}: it makes steps and scales losses in other ways",
        "transformers >= 5.0; 5.24.0 is what it was run on",
    ),
)


class Callback(TrainerCallback, ExportableState):
    """The gradient noise in a Trainer's logs, and a batch that follows a schedule.

    ``Callback(...).attach(trainer)`` puts it before the Trainer's loggers, so that all
    of them get what it measures.

    Under a schedule the Trainer's steps stay steps of *today's* batch: an update of
    twice the batch counts for two. So ``max_steps``, warm-up, decay, logging, saving
    and resuming go by examples; ``batch/updates`` in the logs counts updates. The last
    update may go beyond ``max_steps`` by less than its batch.

    Args:
        monitor: Whether to measure the noise, or the monitor that does.
        schedule: The batch along the run, or as a word: ``"ramp:64:512:3epochs"``.
        rule: How the optimizer's numbers follow the batch, see `Controller`.
        raise_on: Codes of the linter, or beginnings of codes; ``attach`` raises what
            they find.

    Example:
        ``Callback(schedule="ramp:64:512:3epochs").attach(trainer)``
    """

    def __init__(
        self,
        monitor: bool | NoiseMonitor | None = True,
        schedule: Schedule | str | None = None,
        *,
        rule: str = "auto",
        raise_on: tuple[str, ...] | str = (),
    ) -> None:
        self.schedule, self.rule, self.raise_on = schedule, rule, raise_on
        self.wanted, self.monitor = monitor, None
        self.trainer: Any = None
        self.steps: TrainerSteps | None = None
        # Set by a Trainer that makes callbacks anew from what a checkpoint says.
        self.saved: dict[str, Any] | None = None

    monitor: NoiseMonitor | None

    def attach(self, trainer: Any) -> Callback:
        """Follow this Trainer; before ``trainer.train()``.

        Args:
            trainer: Whose first callback this becomes.

        Returns:
            Itself.

        Raises:
            SettingError: The Trainer or the schedule cannot be followed; and why.
            JobError: The linter found something of ``raise_on``.
        """
        refuse_unsupported(trainer)
        args, self.trainer = trainer.args, trainer
        loss = TrainerLoss(trainer)
        if args.gradient_accumulation_steps > 1 and not loss.right:
            warnings.warn(str(loss.wrong()), stacklevel=2)
        if self.schedule is not None:
            self.steps = TrainerSteps(trainer, self.schedule, self.rule)
        if self.raise_on:
            refuse_findings(
                job(trainer),
                self.raise_on,
                micro_batch=args.per_device_train_batch_size,
                accumulation=args.gradient_accumulation_steps,
                schedule=self.steps and self.steps.schedule,
            )
        callbacks = trainer.callback_handler.callbacks
        ours = (Callback, TrainerSteps)  # of an earlier call too
        others = [c for c in callbacks if not isinstance(c, ours)]
        callbacks[:] = [self, *([self.steps] if self.steps else []), *others]
        return self

    def state(self) -> dict[str, Any]:
        """For a checkpoint of the Trainer."""
        parts = {"monitor": self.monitor and self.monitor.state_dict()}
        parts["steps"] = self.steps and self.steps.state()
        return {"args": {}, "attributes": {"saved": parts}}

    def on_train_begin(self, args: Any, state: Any, *_: Any, **given: Any) -> None:
        """Hooks are put on the model; a checkpoint's numbers are taken up."""
        refuse(
            "this callback cannot follow its Trainer",
            (
                self.saved is not None,
                "restore_callback_states_from_checkpoint=True makes it anew",
                "leave that out: it finds its numbers by itself",
            ),
            (
                self.trainer is None,
                "it is not attached: loggers would come before it",
                "Callback(...).attach(trainer), before trainer.train()",
            ),
        )
        self.close()
        self.monitor = self.wanted if isinstance(self.wanted, NoiseMonitor) else None
        if self.wanted is True:
            data = given["train_dataloader"].dataset
            self.monitor = NoiseMonitor(
                self.trainer.model_wrapped,
                given["optimizer"],
                population=len(data) if hasattr(data, "__len__") else None,
            )
        # A checkpoint of a run without this callback has no place for its state.
        name, new = type(self).__name__, {"args": {}, "attributes": {"saved": {}}}
        found = state.stateful_callbacks.setdefault(name, new)
        saved = found["attributes"]["saved"] if found and state.global_step else {}
        if self.monitor is not None and saved.get("monitor"):
            self.monitor.load_state_dict(saved["monitor"])
        if self.steps is not None:
            self.steps.monitor, self.steps.saved = self.monitor, saved.get("steps")

    def on_log(self, args: Any, state: Any, _: Any, logs: Any, **_other: Any) -> None:
        """Add the noise, for every logger that comes after."""
        if self.monitor is None or not {"loss", "train_loss"} & set(logs):
            return
        noise = self.monitor.read()
        if not math.isfinite(noise.noise_scale.high):  # too few of late: all there are
            noise = self.monitor.read(window=noise.examples)
        if noise.steps:
            logs.update(noise.log())
            state.log_history[-1].update(noise.log())

    def on_train_end(self, *_: Any, **_other: Any) -> None:
        """Hooks are taken away; what was measured stays readable."""
        self.close()

    def close(self) -> None:
        """Take the hooks away, where they are not of a monitor that was given."""
        if self.monitor is not None and self.monitor is not self.wanted:
            self.monitor.close()
