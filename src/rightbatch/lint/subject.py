"""What the linter looks at, where it is no job: a loop's own objects."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.trees import example_count, select_examples
from rightbatch.job.job import Job
from rightbatch.job.loss import Loss
from rightbatch.measure.measurements import JobFacts


def job_of(model: nn.Module, loss: Loss, batch: Any, optimizer: Any) -> Job:
    """A job over the examples of one batch.

    Args:
        model: Copied before every use.
        loss: As in `Job`.
        batch: Its examples are the job's data.
        optimizer: The loop's own, or a function of parameters; None: there is none.

    Raises:
        SettingError: The loss is a criterion of torch, which takes no model; or the
            model is no module.
        JobError: Which examples the batch holds cannot be told, or it holds fewer
            than two.
    """
    if type(loss).__module__ == "torch.nn.modules.loss":
        raise SettingError(
            "the loss takes the model and a batch, and a criterion takes neither",
            seen=type(loss).__name__,
            fix="loss=lambda model, batch: criterion(model(batch[0]), batch[1])",
        )
    if not isinstance(model, nn.Module):
        raise SettingError(
            "model is the network itself",
            seen=f"model={model!r:.60}",
            fix="model=net, a torch.nn.Module",
        )
    count = _count(batch)
    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer = same_optimizer(optimizer, model)
    if optimizer is None:
        optimizer = _placeholder
    return Job(
        model=model,
        loss=loss,
        data=range(count),
        collate=lambda indices: select_examples(batch, list(indices), count),
        optimizer=optimizer,
        batch_size=count,
        name=type(model).__name__,
    )


def _count(batch: Any) -> int:
    try:
        count = example_count(batch)
    except JobError as error:
        raise JobError(
            "which examples the batch holds cannot be told",
            seen=error.seen,
            why="rules repeat, exchange and leave out examples",
            fix="tensors with one row for each example, in a tuple, list or dict; of a "
            "loader: batch=next(iter(loader)), loader=loader",
        ) from error
    if count < 2:
        raise JobError(
            f"the batch holds {'one example' if count else 'no example'}",
            seen=f"batch of {count}",
            why="what examples do to each other cannot be seen in it",
            fix="a batch of two or more, best one of the size that is trained with",
        )
    return count


def job_measured(facts: JobFacts) -> Job:
    """What stands for a job that is known by its measurements alone.

    Its batch and its number of examples are the job's; model and data are not.
    """
    return Job(
        model=nn.Identity,
        loss=lambda model, batch: torch.zeros(()),
        data=range(facts.examples),
        optimizer=_placeholder,
        batch_size=facts.batch_size,
        name=facts.name,
    )


def _placeholder(params: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=1e-3)  # nothing is stepped by it


def same_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> Callable[[Iterable[Any]], torch.optim.Optimizer]:
    """What makes an optimizer of the same kind and numbers, over a copy's parameters.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> make = same_optimizer(torch.optim.SGD(net.parameters(), lr=0.5), net)
        >>> make(nn.Linear(2, 1).parameters()).param_groups[0]["lr"]
        0.5
    """
    trained = (p for p in model.parameters() if p.requires_grad)
    place = {id(parameter): number for number, parameter in enumerate(trained)}

    def make(params: Iterable[Any]) -> torch.optim.Optimizer:
        mine = list(params)
        made = copy.copy(optimizer)
        # What a scheduler leaves behind: it steps the loop's optimizer, not this one.
        made.__dict__.pop("step", None)
        made.param_groups = [
            {
                **{key: value for key, value in g.items() if key != "initial_lr"},
                "params": [mine[place[id(p)]] for p in g["params"] if id(p) in place],
            }
            for g in optimizer.param_groups
        ]
        made.state = defaultdict(dict)
        return made

    return make
