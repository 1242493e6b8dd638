"""The job: what the user trains, and by which recipe; we never change it."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.guards import evaluating
from rightbatch.core.real_number import real_number
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import has_scheduler, is_out_of_memory, out_of_memory
from rightbatch.core.trees import to_device
from rightbatch.core.user_code import user_code
from rightbatch.core.whole_number import keep_whole_numbers, whole_number
from rightbatch.job.loss import LOSS_FORM, PRECISIONS, Loss, scalar_loss
from rightbatch.job.optimizers import first_rate
from rightbatch.job.several_optimizers import as_one, members_of

SEEDS = 2**63 - 1  # the largest that every generator takes
OPTIMIZER_FORM = "optimizer=lambda params: torch.optim.SGD(params, lr=0.1)"
FUNCTION_FORMS = {
    "loss": f"Job({LOSS_FORM})",
    "optimizer": f"Job({OPTIMIZER_FORM})",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job: model, loss, data, optimizer and today's batch size.

    Args:
        model: A factory ``() -> nn.Module``, called under ``seed``, or a module, which
            is copied before every use and itself left as it is.
        loss: Called in training mode, and in eval mode by checks and races;
            ``(model, batch) ->`` the mean over the batch's examples, a scalar; or
            ``(sum, count)`` where targets are ragged or masked, so that batches can be
            split without a mean of means.
        data: A map-style dataset, or a tuple of tensors with equal first axis.
        optimizer: ``params -> torch.optim.Optimizer`` at the learning rate used today;
            or a list of several, each of other parameters (Muon for matrices, AdamW for
            the rest). Where its first argument is called ``named_params``, it gets
            pairs of name and parameter.
        batch_size: The batch that learning rate was chosen for, in examples per step.
        evaluate: ``model -> float`` on held-out data; called in eval mode, no gradient.
        target: The value of ``evaluate`` that ends a run.
        goal: ``"min"`` if lower values of ``evaluate`` are better, else ``"max"``.
        collate: Turns a list of examples into a batch (datasets only).
        device: Where to train; default: where the factory puts the parameters.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast.
        name: How reports call the job.
        example: What one example is, such as ``"sequence of 64 bytes"``.
        seed: Seed of initial weights and of the order of examples.
        rate: How the learning rate changes along today's run: a `schedules.Rate`, one
            word such as ``"warmup:2k+cosine:9epochs"``, or a function
            ``optimizer -> torch scheduler`` that counts *steps* of today's batch, not
            epochs (it needs ``examples`` or ``epochs``). Never made inside
            ``optimizer``: it would not be stepped.
        clip_norm: Largest norm of the whole gradient.
        examples: Length of today's run, in examples seen.
        epochs: The same, in passes over the data.
        num_workers: Processes that read the data set ahead.

    Raises:
        SettingError: A field has a value that cannot work; the message says which.

    Example:
        >>> import torch, rightbatch as rb
        >>> x = torch.randn(100, 3)
        >>> job = rb.Job(
        ...     model=lambda: torch.nn.Linear(3, 1),
        ...     loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        ...     data=(x, x.sum(1, keepdim=True)),
        ...     optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        ...     batch_size=8,
        ... )
        >>> job.length
        100
    """

    model: nn.Module | Callable[[], nn.Module]
    loss: Loss
    data: Any
    optimizer: Callable[[Iterable[Any]], Any]
    batch_size: int
    evaluate: Callable[[nn.Module], float] | None = None
    target: float | None = None
    goal: Literal["min", "max"] = "min"
    collate: Callable[[list[Any]], Any] | None = None
    device: str | torch.device | None = None
    precision: str = "float32"
    name: str = "job"
    example: str = "example"
    seed: int = 0
    rate: str | Callable[..., Any] | None = None
    clip_norm: float | None = None
    examples: int | None = None
    epochs: float | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        keep_whole_numbers(self, "batch_size", "examples")
        keep_whole_numbers(self, "seed", "num_workers", least=0)
        self._check_plain_values()
        if self.goal not in ("min", "max"):
            raise SettingError(
                "goal must be 'min' or 'max'", seen=f"goal={self.goal!r}"
            )
        if self.precision not in PRECISIONS:
            raise SettingError(
                f"precision must be one of {', '.join(PRECISIONS)}",
                seen=f"precision={self.precision!r}",
                why="float16 needs a gradient scaler, which measuring does not have",
            )
        if self.target is not None and self.evaluate is None:
            raise SettingError(
                "a target needs an evaluate function",
                seen=f"target={self.target}, evaluate=None",
                fix="Job(..., evaluate=lambda model: validation_loss(model))",
            )
        _check_data(self.data)
        for role in ("collate", "num_workers"):
            if getattr(self, role) and isinstance(self.data, tuple):
                raise SettingError(
                    f"{role} has no effect on a tuple of tensors",
                    seen=f"data is a tuple of tensors, {role} is given",
                    fix=f"leave {role} out, or pass a dataset",
                )
        self._check_recipe()

    def _check_plain_values(self) -> None:
        """Refuse a seed, a target, a name, a function or a device of the wrong kind."""
        if self.seed > SEEDS:
            raise SettingError(
                "seed is larger than a generator takes",
                seen=f"seed={self.seed}",
                fix=f"seed={self.seed % 1000}, or any other up to 2**63 - 1",
            )
        if self.target is not None:
            real_number(self.target, "target")
        for role in ("name", "example"):
            if not isinstance(getattr(self, role), str):
                raise SettingError(
                    f"{role} must be text",
                    seen=f"{role}={getattr(self, role)!r:.60}",
                    fix=f"{role}={str(getattr(self, role))!r:.60}",
                )
        for role in ("loss", "optimizer", "evaluate", "collate"):
            value, needed = getattr(self, role), role in FUNCTION_FORMS
            if not callable(value) and (needed or value is not None):
                raise SettingError(
                    f"{role} must be a function",
                    seen=f"{role}={value!r:.60}",
                    fix=FUNCTION_FORMS.get(role, ""),
                )
        try:
            torch.device("cpu" if self.device is None else self.device)
        except (RuntimeError, TypeError) as error:
            raise SettingError(
                "there is no such device",
                seen=f"device={self.device!r:.60}",
                fix="'cpu', 'cuda', 'cuda:1', 'mps', or leave it out",
            ) from error

    def _check_recipe(self) -> None:
        """Refuse a schedule, a clipping or a length that cannot work."""
        rate = self.rate
        if rate is not None and not isinstance(rate, str) and not callable(rate):
            raise SettingError(
                "rate must be a Rate, one word, or a function that makes a scheduler",
                seen=f"rate={rate!r:.60}",
                why="a scheduler belongs to one optimizer, and every run has its own",
                fix="rate=lambda optimizer: CosineAnnealingLR(optimizer, T_max=1000)",
            )
        if self.clip_norm is not None:
            real_number(self.clip_norm, "clip_norm", positive=True)
        run_length(self.length, self.examples, self.epochs)

    @property
    def run_examples(self) -> float | None:
        """Examples that today's run sees; None where its length is not said."""
        return run_length(self.length, self.examples, self.epochs)

    @property
    def length(self) -> int:
        """Number of training examples.

        Raises:
            JobError: The data set does not say it.
        """
        if isinstance(self.data, tuple):
            return len(self.data[0])
        with user_code("len(data)"):
            return len(self.data)

    def make_model(self) -> nn.Module:
        """A fresh model of its own, on the job's device, in training mode.

        Raises:
            JobError: The factory raised, or returned something else than a module; a
                module cannot be copied; or there are no numbers in it (meta device).
        """
        if isinstance(self.model, nn.Module):
            model = copied_module(self.model)
        else:
            torch.manual_seed(self.seed)
            with user_code("model()"):
                model = self.model()
            if not isinstance(model, nn.Module):
                raise JobError(
                    "model() did not return an nn.Module",
                    seen=f"{type(model).__name__}",
                    fix="Job(model=make_model) where make_model() returns the network",
                )
        check_content(model)
        if self.device is not None:
            model = _moved(model, self.device)
        return model.train()

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The job's optimizer over the trainable parameters of a model.

        Several come back as one, see `job.several_optimizers.SeveralOptimizers`.

        Raises:
            JobError: Nothing is trainable, no optimizer came back, or it came with a
                learning-rate scheduler.
        """
        # Names are the network's own, however many ranks train it.
        network = model.module if isinstance(model, DistributedDataParallel) else model
        named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        if any(isinstance(p, nn.UninitializedParameter) for _, p in named):
            raise JobError(
                "the model has lazy layers whose shapes are not known yet",
                why="there are no parameters to give to the optimizer",
                fix="run one batch through the network inside model()",
            )
        if not named:
            raise JobError(
                "the model has no trainable parameter",
                seen=f"{sum(1 for _ in model.parameters())} parameters, 0 require grad",
                why="without a gradient there is neither noise nor progress to measure",
                fix="leave requires_grad on for what should be trained",
            )
        wants_names = _first_argument(self.optimizer) == "named_params"
        form = f"it gets parameters, not the model: {OPTIMIZER_FORM}"
        with user_code("optimizer(params)", form=form):
            made = self.optimizer(named if wants_names else [p for _, p in named])
        try:
            optimizer = as_one(made)
        except SettingError as error:
            raise JobError(
                f"optimizer(params): {error.what}",
                seen=error.seen,
                why=error.why,
                fix="Job(optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3)), "
                "or a list of several, each of other parameters",
            ) from error
        if any(has_scheduler(member) for member in members_of(optimizer)):
            raise JobError(
                "a learning-rate scheduler is made inside optimizer=",
                seen=f"lr {first_rate(optimizer)} as it left it",
                why="nobody steps it: its first factor would stay for the whole run",
                fix="Job(rate=lambda optimizer: CosineAnnealingLR(optimizer, ...), "
                "epochs=9), and the optimizer at its plain rate",
            )
        return optimizer

    def batch(self, indices: Tensor | Sequence[int], device: torch.device) -> Any:
        """The examples at ``indices``, collated and on ``device``."""
        if not isinstance(self.data, tuple):
            return self.collated(self.read(indices), device)
        index = torch.as_tensor(indices)
        return to_device(tuple(t[index.to(t.device)] for t in self.data), device)

    def read(self, indices: Tensor | Sequence[int]) -> list[Any]:
        """The examples of a data set at ``indices``, as it gives them.

        Raises:
            JobError: The data set raised.
        """
        wanted = [int(i) for i in indices]
        many = getattr(self.data, "__getitems__", None)
        with user_code("the data set"):
            return list(many(wanted)) if many else [self.data[i] for i in wanted]

    def collated(self, examples: list[Any], device: torch.device) -> Any:
        """A batch of examples of a data set, on ``device``.

        Raises:
            JobError: ``collate`` raised.
        """
        with user_code(f"collating {len(examples)} examples"):
            batch = (self.collate or default_collate)(examples)
        return to_device(batch, device)

    def mean_loss(
        self, model: nn.Module, batch: Any
    ) -> tuple[Tensor, Tensor | float | None]:
        """The loss as (value to differentiate, count); no count marks a plain mean.

        Raises:
            JobError: The loss is neither a scalar nor a pair of scalars.
        """
        return scalar_loss(self.loss, model, batch, PRECISIONS[self.precision])

    def evaluated(self, model: nn.Module) -> float:
        """The value of ``evaluate``, in eval mode and without gradients."""
        assert self.evaluate is not None
        with evaluating(model), user_code("evaluate(model)"):
            value = self.evaluate(model)
        try:
            if isinstance(value, str):
                raise TypeError("text is no number")
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            shape = getattr(value, "shape", None)
            raise JobError(
                f"evaluate(model) returned {type(value).__name__}, not a number",
                seen=first_line(error) if shape is None else f"shape {tuple(shape)}",
                fix="return a float, such as the mean loss on held-out data",
            ) from error

    def met(self, value: float) -> bool:
        """Whether ``value`` is at the target or beyond it."""
        if self.target is None or not math.isfinite(value):
            return False
        return value <= self.target if self.goal == "min" else value >= self.target


def _moved(model: nn.Module, device: str | torch.device) -> nn.Module:
    """The model on its device.

    Raises:
        JobError: There is no such device here.
    """
    try:
        return model.to(device)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise JobError(
            f"the model cannot be moved to device {str(device)!r}",
            seen=first_line(error),
            fix="Job(device='cpu'), or leave device out: then it stays where the "
            "factory puts it",
        ) from error


def copied_module(model: nn.Module) -> nn.Module:
    """A module like this one, that shares nothing with it.

    Raises:
        JobError: It cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        if out_of_memory(error) is not None:
            raise
        raise JobError(
            "the model cannot be copied",
            seen=f"copy.deepcopy(model) raised {type(error).__name__}: "
            f"{first_line(error, 150)}",
            why="every use of a job trains a copy, and the module stays as it is; what "
            "it keeps from a pass (an output, a cache), a lock or a file has no copy",
            fix="a factory: Job(model=make_model), a function that builds the network",
        ) from error


def check_content(model: nn.Module) -> None:
    """Refuse a model whose tensors have a shape and no numbers.

    Raises:
        JobError: It is on the meta device, or a part of it.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, tensor in named if tensor.device.type == "meta"]
    if empty:
        raise JobError(
            "the model is on the meta device, where tensors hold no numbers",
            seen=f"{len(empty)} of {len(named)} parameters and buffers, such as "
            f"{empty[0]}",
            why="there is nothing to train; largest_batch and `rightbatch memory` need "
            "no meta device, they trace the model without making its numbers",
            fix="build it without torch.device('meta'); or inside model(): "
            "net.to_empty(device='cpu'), then initialise it",
        )


def _first_argument(function: Callable[..., Any]) -> str:
    """The name of what a function takes first; empty where it cannot be read."""
    try:
        return next(iter(inspect.signature(function).parameters), "")
    except (TypeError, ValueError):
        return ""


def run_length(length: int, examples: int | None, epochs: float | None) -> float | None:
    """Examples that a run sees, if that is said: in examples, or in passes.

    Args:
        length: Examples in the data set.
        examples: Of the run.
        epochs: Instead.

    Raises:
        SettingError: Both are said, or one that makes no sense.

    Example:
        >>> run_length(1000, None, 2.5)
        2500.0
    """
    if examples is not None and epochs is not None:
        raise SettingError(
            "give examples or epochs, not both",
            seen=f"examples={examples}, epochs={epochs}",
        )
    if examples is not None:
        return float(whole_number(examples, "examples"))
    if epochs is not None:
        passes = real_number(epochs, "epochs", positive=True)
        return float(max(1, round(passes * length)))
    return None


def _check_data(data: Any) -> None:
    """Refuse data whose examples cannot be counted or picked by number.

    Raises:
        SettingError: They cannot.
    """
    if isinstance(data, tuple):
        if not data or not all(isinstance(t, Tensor) and t.ndim >= 1 for t in data):
            raise SettingError(
                "data as a tuple must hold tensors with a first axis of examples",
                seen=f"({', '.join(type(t).__name__ for t in data)})",
                fix="data=(inputs, targets), or a map-style dataset",
            )
        lengths = [len(t) for t in data]
        if len(set(lengths)) > 1:
            raise SettingError(
                "the tensors of data differ in their number of examples",
                seen=f"first axes {lengths}",
                fix="give every tensor the same first axis",
            )
    elif not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise SettingError(
            "data must be map-style: it needs __len__ and __getitem__",
            seen=f"{type(data).__name__}",
            why="the order of examples is fixed by number, so that a batch can be "
            "cut anywhere",
            fix="a torch Dataset or a tuple of tensors; a DataLoader's own .dataset",
        )
