"""A LightningModule as a job: its step is the loss, its loaders are the data."""

from __future__ import annotations

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils import data as torch_data

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.trees import example_count, to_device
from rightbatch.core.user_code import user_code
from rightbatch.integrations.refusals import refuse
from rightbatch.job.job import Job, copied_module

PRECISIONS = {"32-true": "float32", "bf16-mixed": "bfloat16"}
# They take every example once an epoch, as a job's own stream does.
SAMPLERS = (
    torch_data.RandomSampler,
    torch_data.SequentialSampler,
    torch_data.DistributedSampler,
)
THEIRS = ("lightning.", "pytorch_lightning.")


def job(
    module: Any,
    data: Any = None,
    trainer: Any = None,
    *,
    monitor: str | None = None,
    epochs: float | None = None,
) -> Job:
    """A ``LightningModule`` as a `Job`: what ``trainer.fit(module, data)`` would train.

    The loss is what ``training_step`` returns, without a trainer: what it logs goes
    nowhere. The module itself stays as it is. Other fields of the job, such as its
    ``target``, are set by ``dataclasses.replace``.

    Args:
        module: With automatic optimization and one optimizer.
        data: A ``LightningDataModule`` or ``DataLoader``; default: the module's own
            ``train_dataloader``.
        trainer: Gives accumulation, clipping, precision, device and length; not run.
        monitor: Name under which ``validation_step`` logs the value to judge by;
            default: the loss it returns, or ``"val_loss"``.
        epochs: Length of today's run, which a scheduler needs; default: the trainer's.

    Raises:
        JobError: Module, data or optimizer are none that a job can have, or raised.
        SettingError: The trainer does what a job cannot, or the scheduler needs the
            length of the run.

    Example:
        ``rightbatch tune train.py:module``, or ``train.py:job`` after::

            job = rb.integrations.lightning.job(module, data, trainer)
    """
    module = copied_module(module)
    loader, held_out = _loaders(module, data)
    return job_of(module, loader, held_out, trainer, monitor, epochs)


def job_of(
    module: Any,
    loader: Any,
    held_out: Any = None,
    trainer: Any = None,
    monitor: str | None = None,
    epochs: float | None = None,
) -> Job:
    """The job of a module that may be changed, whose loaders are there."""
    _check(module, loader)
    trainer = trainer or SimpleNamespace(
        accumulate_grad_batches=1, world_size=1, max_steps=-1, max_epochs=None
    )
    split, length = trainer.accumulate_grad_batches, len(loader.dataset)
    batch = loader.batch_size * split * trainer.world_size
    epochs = trainer.max_epochs if epochs is None else epochs
    ends = [round(epochs * length)] if epochs and epochs > 0 else []
    ends += [trainer.max_steps * batch] if trainer.max_steps > 0 else []
    examples = min(ends, default=None)
    steps = None if examples is None else math.ceil(examples / batch)
    recipe = _Recipe(module, trainer, steps, math.ceil(length / batch))
    return Job(
        model=TrainingStep(module),
        loss=lambda model, batch: model(batch),
        data=loader.dataset,
        collate=loader.collate_fn,
        num_workers=loader.num_workers,
        batch_size=batch,
        optimizer=recipe.optimizer,
        rate=recipe.rate(),
        examples=examples,
        evaluate=None if held_out is None else _evaluation(held_out, monitor),
        **_settings(trainer),
    )


class TrainingStep(nn.Module):
    """A LightningModule whose call is its training step; what it logs goes nowhere."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        module.log = module.log_dict = module.print = _ignore

    def forward(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        loss = _loss(_called(self.module, "training_step", batch))
        if loss is None:
            raise JobError("training_step returned no loss", fix="return the loss")
        return loss


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Instead of what would ask for a trainer."""


def _loss(result: Any) -> Tensor | None:
    return result.get("loss") if isinstance(result, Mapping) else result


def _called(module: Any, name: str, batch: Any) -> Any:
    """What a step returns, after the hooks that a batch goes through before it."""
    device = next(module.parameters()).device
    if module.device != device:  # it knows of its own moves only
        module.to(device)
    batch = to_device(module.on_before_batch_transfer(batch, 0), device)
    batch, step = module.on_after_batch_transfer(batch, 0), getattr(module, name)
    return (
        step(batch, 0) if len(inspect.signature(step).parameters) > 1 else step(batch)
    )


def _overrides(thing: Any, *names: str) -> bool:
    methods = (getattr(type(thing), name) for name in names)
    return any(not method.__module__.startswith(THEIRS) for method in methods)


def _loaders(module: Any, data: Any) -> tuple[Any, Any]:
    """The training and the validation loader, made as a trainer makes them."""
    loader = data if isinstance(data, torch_data.DataLoader) else None
    source = module if data is None or loader is not None else data
    with user_code("making the loaders"):
        for thing in (source, module) if source is not module else (module,):
            thing.prepare_data()
            thing.setup("fit")
        module.configure_model()
        if loader is None and _overrides(source, "train_dataloader"):
            loader = source.train_dataloader()
        validated = _overrides(module, "validation_step")
        validated = validated and _overrides(source, "val_dataloader")
        held_out = source.val_dataloader() if validated else None
    if isinstance(held_out, (list, tuple)):
        held_out = held_out[0]  # as callbacks do, which monitor the first
    changes = ("on_before_batch_transfer", "on_after_batch_transfer")
    if source is not module and _overrides(source, *changes):
        raise JobError(
            "the data module changes batches on their way to the device",
            fix="let the LightningModule do it: " + " or ".join(changes),
        )
    return loader, held_out


def _check(module: Any, loader: Any) -> None:
    """Refuse a module whose step is no loss, and data without numbered examples."""
    plain = isinstance(loader, torch_data.DataLoader)
    data: Any = loader.dataset if plain else None
    sampler = type(loader.sampler).__name__ if plain else ""
    listed = isinstance(data, torch_data.IterableDataset)
    ways = ("backward", "optimizer_step", "configure_gradient_clipping")
    overridden = [n for n in (*ways, "lr_scheduler_step") if _overrides(module, n)]
    own = plain and not (loader.batch_size and isinstance(loader.sampler, SAMPLERS))
    manual, kind = not module.automatic_optimization, type(loader).__name__
    refuse(
        "the LightningModule cannot be made a job",
        (manual, "manual optimization: training_step is no loss", "Callback()"),
        (overridden, f"a way of its own in {', '.join(overridden)}", "a rb.Job"),
        (
            not plain,
            f"its training data is no DataLoader but a {kind}",
            "job(.., data)",
        ),
        (listed, "an IterableDataset has no numbered examples", "a map-style one"),
        (own, f"sampler {sampler}, or no batch_size", "each example once an epoch"),
        error=JobError,
    )


def _settings(trainer: Any) -> dict[str, Any]:
    """What a trainer says of how is trained, beside the batch.

    Raises:
        SettingError: A job cannot do it.
    """
    if not hasattr(trainer, "strategy"):
        return {"device": "cuda" if torch.cuda.is_available() else None}
    clip = trainer.gradient_clip_val or None
    by_value = clip and "value" in str(trainer.gradient_clip_algorithm).lower()
    precision, strategy = trainer.precision, trainer.strategy
    other, known = precision not in PRECISIONS, " or ".join(PRECISIONS)
    by_itself = strategy.handles_gradient_accumulation
    refuse(
        "the trainer does what a job cannot",
        (other, f"precision {precision!r}", known),
        (by_value, "gradient_clip_algorithm='value'", "clipping by norm"),
        (by_itself, f"{type(strategy).__name__} makes the steps", "one device"),
    )
    kind = strategy.root_device.type
    return {"clip_norm": clip, "precision": PRECISIONS[precision], "device": kind}


class _Every:
    """A scheduler that makes a step once in so many."""

    def __init__(self, scheduler: Any, every: int) -> None:
        self.scheduler, self.every, self.calls = scheduler, every, 0

    def step(self) -> None:
        self.calls += 1
        if self.calls % self.every == 0:
            self.scheduler.step()


class _Recipe:
    """What ``configure_optimizers`` makes, for any parameters of the module."""

    def __init__(
        self, module: Any, trainer: Any, steps: int | None, epoch_steps: int
    ) -> None:
        self._module, self._epoch_steps = module, epoch_steps
        self._split, self._steps = trainer.accumulate_grad_batches, steps
        self._trainer = SimpleNamespace(  # what the method may ask a trainer for
            estimated_stepping_batches=steps,
            max_steps=trainer.max_steps,
            max_epochs=trainer.max_epochs or math.ceil((steps or 0) / epoch_steps),
            num_training_batches=epoch_steps * self._split,
            accumulate_grad_batches=self._split,
            world_size=trainer.world_size,
        )

    def optimizer(self, named_params: Iterable[Any]) -> Any:
        """The optimizer at its plain rate: its scheduler is the job's ``rate``."""
        optimizer, _ = self._made(dict(named_params))
        vars(optimizer).pop("step", None)  # as the scheduler has wrapped it
        for group in optimizer.param_groups:
            group["lr"] = group.pop("initial_lr", group["lr"])
        return optimizer

    def rate(self) -> Callable[[Any], Any] | None:
        """``optimizer -> scheduler`` by steps of today's batch; None: there is none."""
        _, config = self._made({})
        if not config:
            return None
        if self._steps is None:
            raise SettingError(
                "the learning-rate scheduler needs the length of today's run",
                seen=type(config["scheduler"]).__name__,
                fix="a function that returns rb.integrations.lightning.job(module, "
                "data, trainer), or job(..., epochs=9)",
            )
        every = self._epoch_steps * config.get("frequency", 1)
        if config.get("interval") == "step":  # its frequency counts micro-batches
            every = math.lcm(config.get("frequency", 1), self._split) // self._split

        def made(optimizer: Any) -> Any:
            own, config = self._made({})
            optimizer.param_groups[:] = own.param_groups  # that its scheduler moves
            return _Every(config["scheduler"], every)

        return made

    def _made(self, named: dict[str, nn.Parameter]) -> tuple[Any, dict[str, Any]]:
        """The optimizer, and how its scheduler is stepped; empty: it has none."""
        own = dict(self._module.named_parameters())
        # A copy that has the given parameters, where another would copy its own.
        memo: dict[int, Any] = {
            id(own[name.removeprefix("module.")]): p for name, p in named.items()
        }
        copied = copy.deepcopy(self._module, memo)
        copied.trainer = self._trainer if self._steps else None
        with user_code("configure_optimizers()"):
            result = copied.configure_optimizers()
        optimizers, schedulers = _parts(result)
        configs = [
            dict(s) if isinstance(s, Mapping) else {"scheduler": s} for s in schedulers
        ]
        by_metric = any(isinstance(c["scheduler"], ReduceLROnPlateau) for c in configs)
        if len(optimizers) != 1 or len(configs) > 1 or by_metric:
            raise JobError(
                "a job has one optimizer, and one scheduler at most, that counts",
                seen=f"{len(optimizers)} optimizers, "
                f"{[type(c['scheduler']).__name__ for c in configs]}",
                why="which of several is stepped when only the trainer knows; and what "
                "follows a metric gives no two batches the same rates",
                fix="a rb.Job of your own: its optimizer= may return a list",
            )
        return optimizers[0], next(iter(configs), {})


def _parts(result: Any) -> tuple[list[Any], list[Any]]:
    """Optimizers and schedulers, in each of the forms they may come in."""
    if not isinstance(result, (list, tuple)):
        result = [result]
    if len(result) == 2 and isinstance(result[0], (list, tuple)):
        several = isinstance(result[1], (list, tuple))
        return list(result[0]), list(result[1]) if several else [result[1]]
    maps = [r if isinstance(r, Mapping) else {"optimizer": r} for r in result]
    optimizers = [r["optimizer"] for r in maps]
    return optimizers, [r["lr_scheduler"] for r in maps if "lr_scheduler" in r]


def _evaluation(held_out: Any, monitor: str | None) -> Callable[[nn.Module], float]:
    """The mean over held-out examples of what ``validation_step`` returns or logs."""

    def evaluate(model: Any) -> float:
        module, metrics, count = model.module, dict[str, Any](), 1
        sums, weights = defaultdict[str, float](float), defaultdict[str, int](int)

        def log(name: str, value: Any, *_: Any, **kwargs: Any) -> None:
            if hasattr(value, "compute"):  # a metric that counts by itself
                metrics[name] = value
                return
            weight = kwargs.get("batch_size") or count
            sums[name] += weight * float(value)
            weights[name] += weight

        module.log = log
        module.log_dict = lambda values, **kw: [log(n, values[n], **kw) for n in values]
        try:
            for batch in held_out:
                count = example_count(batch)
                loss = _loss(_called(module, "validation_step", batch))
                if loss is not None:
                    log("", loss)
            module.on_validation_epoch_end()
        finally:
            module.log = module.log_dict = _ignore
        name = monitor or ("" if "" in weights else "val_loss")
        if name in metrics:
            value = float(metrics[name].compute())
            metrics[name].reset()
            return value
        if name not in weights:
            raise JobError(
                f"validation_step logs no {name!r}",
                seen=", ".join({**weights, **metrics}) or "it logs nothing",
                fix="monitor=... of those, or return the loss",
            )
        return sums[name] / weights[name]

    return evaluate
