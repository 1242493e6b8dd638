"""What a Hugging Face Trainer minimises, and whether accumulating keeps it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rightbatch.core.errors import SettingError
from rightbatch.core.guards import evaluating, preserved_rng
from rightbatch.core.trees import to_device
from rightbatch.integrations.refusals import refuse


class TrainerLoss:
    """The loss of a Trainer: ``(model, batch) ->`` a mean, or ``(sum, count)``.

    A Trainer counts the labels of all micro-batches of a step and hands that number to
    the model (``num_items_in_batch``). Whether the loss is divided by it is tried once,
    on two examples: that of many models, such as BERT's for classification, is not.

    Args:
        trainer: Its own ``compute_loss`` is called.

    Attributes:
        loader: That of its training data.
        by_count: Whether the loss is a sum over labels, divided by their number.
        right: Whether a step of several micro-batches has the gradient of their mean:
            the Trainer divides by their number just where the loss is not by labels.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        with preserved_rng(), evaluating(trainer.model):  # its samplers draw
            self.loader = trainer.get_train_dataloader()
            data = self.loader.dataset
            examples = self.loader.collate_fn(
                [data[i] for i in range(min(2, len(data)))]
            )
            batch = to_device(examples, trainer.args.device)
            count = self._count(batch)
            times = (1,) if count is None else (1, 2)
            values = [
                float(self._value(trainer.model, batch, count and count * n))
                for n in times
            ]
        self.by_count = bool(values[0]) and abs(2 * values[-1] / values[0] - 1) < 1e-3
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = trainer.compute_loss_func is not None
            scaled |= trainer.model_accepts_loss_kwargs and count is not None
        self.right = scaled == self.by_count

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """As `Job.loss`."""
        count = self._count(batch)
        value = self._value(model, batch, count)
        return (value * count, count) if self.by_count else value

    def wrong(self) -> SettingError:
        """The error for a Trainer whose gradient is not the mean's."""
        off = "is divided twice" if self.by_count else "grows with their number"
        return SettingError(
            f"this Trainer's gradient of several micro-batches {off}",
            seen=f"{type(self.trainer.model).__name__}: num_items_in_batch "
            f"{'divides' if self.by_count else 'does not change'} its loss, and the "
            f"Trainer takes it to {'do nothing' if self.by_count else 'divide it'}",
            why="rate and clipping then mean something else at every accumulation",
            fix=f"trainer.loss_is_scaled_for_ga = {self.by_count}",
        )

    def _count(self, batch: Any) -> Any:
        """Labels in it, as the Trainer counts them; None: it does not."""
        device = self.trainer.args.device
        return self.trainer.get_batch_samples(iter([batch]), 1, device)[1]

    def _value(self, model: nn.Module, batch: Any, count: Any) -> Tensor:
        # Some of its ways take the labels out of the batch.
        return self.trainer.compute_loss(model, {**batch}, num_items_in_batch=count)


def refuse_unsupported(trainer: Any) -> None:
    """Refuse a Trainer whose steps are not made by the plain loop of one model.

    Raises:
        SettingError: With the reason.
    """
    args, data = trainer.args, trainer.train_dataset
    mapped = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    ranks = "torchrun with one process for each device, data parallel"
    refuse(
        "rightbatch cannot follow this Trainer",
        (args.deepspeed, "deepspeed is set, and makes the steps by itself", ranks),
        (args.fsdp, "fsdp is set: train() shards the parameters", ranks),
        (args.n_gpu > 1, f"n_gpu={args.n_gpu}: DataParallel", ranks),
        (args.auto_find_batch_size, "auto_find_batch_size=True", "a fixed micro-batch"),
        (
            not mapped,
            f"train_dataset is a {type(data).__name__}: examples without a number",
            "a map-style dataset",
        ),
    )
