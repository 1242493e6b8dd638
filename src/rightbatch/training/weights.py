"""Weights and optimizer state of a run, whole, also where ranks hold parts of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rightbatch.core.errors import SettingError
from rightbatch.job.several_optimizers import members_of


def weights_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, sharded: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """State dicts of model and optimizer. Collective where the model is sharded.

    Args:
        model: Without what DDP wraps around it.
        optimizer: Several as one.
        sharded: Whether each rank holds a part of it.
    """
    if not sharded:
        return model.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    # Asked before the first update, torch makes one, which Adam then counts.
    moments: dict[str, Any] = {}
    if optimizer.state:
        members = members_of(optimizer)
        moments = get_optimizer_state_dict(model, members, options=options)
    return weights, moments


def set_weights(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    sharded: bool,
) -> None:
    """Load what `weights_of` returned, as ``model`` and ``optimizer`` of a state.

    Raises:
        SettingError: It is of a run that was sharded, and this is not; or the reverse.
    """
    if state["sharded"] != sharded:
        raise SettingError(
            "the checkpoint is of a run that was "
            + ("sharded" if state["sharded"] else "not sharded"),
            seen=f"shard={sharded} now",
            why="the optimizer's state is stored in another way",
            fix=f"shard={state['sharded']}",
        )
    if not sharded:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, state["model"], options=options)
    if state["optimizer"]:
        members = members_of(optimizer)
        set_optimizer_state_dict(model, members, state["optimizer"], options=options)
