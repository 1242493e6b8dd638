"""State dicts of another trainer, as a job's own model and optimizer take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import SettingError
from rightbatch.job.several_optimizers import MEMBERS, members_of, optimizer_name

WRAPPERS = ("module.", "model.")  # of DDP, and of a LightningModule
COMPILED = "_orig_mod."  # of torch.compile; anywhere in a name
NAMED = 3  # names in an error
# Entries of a param group that say how to compute, not what; they stay the job's.
COMPUTING = ("params", "param_names", "foreach", "fused", "capturable")
# Entries of an optimizer's state that have the shape of their parameter.
LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg")
SAME_OPTIMIZER = (
    "make the same optimizer in Job(optimizer=...) as was used; or name a file of the "
    "model alone, and the moments start anew"
)


def fitting_model(
    network: nn.Module, saved: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """A saved state under the names of the model; what wrapped it is taken off.

    Args:
        network: The job's model.
        saved: State dict of the same, maybe inside DDP, a LightningModule or compiled.
        path: For the error.

    Raises:
        SettingError: Names or shapes differ.

    Example:
        >>> saved = {"module._orig_mod.weight": torch.ones(1, 2)}
        >>> fitting_model(nn.Linear(2, 1, bias=False), saved, Path("a.pt"))
        {'weight': tensor([[1., 1.]])}
    """
    own = network.state_dict()
    # A tied parameter has several names, and may be saved under one of them only.
    twins: dict[Any, list[str]] = {}
    for name, value in own.items():
        twins.setdefault(_place(name, value), []).append(_plain(name))

    def fitted(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        values, faults = {}, []
        for name, value in own.items():
            names = [_plain(name), *twins[_place(name, value)]]
            source = next((n for n in names if n in state), None)
            if source is None:
                faults.append(f"{name} is missing")
            elif _shape(state[source]) != _shape(value):
                there, here = _shape(state[source]), _shape(value)
                faults.append(f"{name} has shape {there}, {here} in the model")
            else:
                values[name] = state[source]
        known = {_plain(name) for name in own}
        faults += [f"{n} is not in the model" for n in state if n not in known]
        return values, faults

    plain = {_plain(name): value for name, value in saved.items()}
    values, faults = min(
        map(fitted, _unwrapped(plain)), key=lambda found: len(found[1])
    )
    if faults:
        more = f", and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise SettingError(
            f"the model in {path} is not the job's",
            seen="; ".join(faults[:NAMED]) + more,
            why="a run can only begin from weights of its own model",
            fix="make the same model in Job(model=...) as was trained",
        )
    return values


def fitting_optimizer(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    saved: Mapping[str, Any],
    path: Path,
) -> dict[str, Any]:
    """A saved state for the job's optimizer: parameters by their order or by name.

    What the param groups hold is the saved, but for how to compute (``foreach``,
    ``fused``), which may be of another machine.

    Args:
        optimizer: The job's; several as one.
        network: Names its parameters.
        saved: State dict of an optimizer with the same groups in the same order; or of
            as many optimizers as the job has, in their order.
        path: For the error.

    Raises:
        SettingError: Optimizers, groups, numbers or shapes differ.
    """
    members = members_of(optimizer)
    several = saved.get(MEMBERS, [saved]) if isinstance(saved, Mapping) else [saved]
    if len(several) != len(members):
        raise SettingError(
            f"{path} holds the states of {len(several)} optimizer(s)",
            seen=f"the job has {len(members)}: {optimizer_name(optimizer)}",
            why="each state belongs to one of them, in their order",
            fix=SAME_OPTIMIZER,
        )
    pairs = zip(members, several, strict=True)
    states = [_fitting(member, network, state, path) for member, state in pairs]
    return {MEMBERS: states} if len(states) > 1 else states[0]


def groups_of(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The param groups in a state dict, of several optimizers one after another."""
    return [g for one in state.get(MEMBERS, [state]) for g in one["param_groups"]]


def _fitting(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    saved: Mapping[str, Any],
    path: Path,
) -> dict[str, Any]:
    """See `fitting_optimizer`, of one."""

    def refuse(seen: str) -> SettingError:
        return SettingError(
            f"the optimizer in {path} is not the job's",
            seen=seen,
            why="its moments belong to its parameters, group by group",
            fix=SAME_OPTIMIZER,
        )

    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= set(saved):
        raise refuse(f"a {type(saved).__name__} without state and param_groups")
    there, here = saved["param_groups"], optimizer.param_groups
    counts = [[len(g["params"]) for g in groups] for groups in (there, here)]
    if counts[0] != counts[1]:
        raise refuse(f"parameters by group: {counts[0]} there, {counts[1]} in the job")
    for before, group in zip(there, here, strict=True):
        lacking = [name for name in numbers(group) if name not in before]
        if lacking:
            name = type(optimizer).__name__
            raise refuse(f"no {lacking[0]}, which the job's {name} has")
    parameters = [p for group in here for p in group["params"]]
    keys: Sequence[Any] = [key for group in there for key in group["params"]]
    if any(isinstance(key, str) for key in keys):  # as sharded ones are saved
        names = {id(p): _plain(name) for name, p in network.named_parameters()}
        keys = [names[id(p)] for p in parameters]
    state = {i: saved["state"][k] for i, k in enumerate(keys) if k in saved["state"]}
    if saved["state"] and not state:
        raise refuse(f"moments of {list(saved['state'])[:NAMED]}, none of the job's")
    for i, moments in state.items():
        for name in LIKE_PARAMETER:
            if _shape(moments.get(name)) not in ((), _shape(parameters[i])):
                shapes = f"{_shape(moments[name])}, {_shape(parameters[i])} in the job"
                raise refuse(f"{name} of parameter {i} has shape {shapes}")
    own_groups = optimizer.state_dict()["param_groups"]
    groups = [
        own | {k: v for k, v in before.items() if k not in COMPUTING}
        for own, before in zip(own_groups, there, strict=True)
    ]
    return {"state": state, "param_groups": groups}


def numbers(group: Mapping[str, Any]) -> dict[str, float | tuple[float, ...]]:
    """The hyperparameters in a param group: numbers and pairs of them, no switches."""
    found: dict[str, float | tuple[float, ...]] = {}
    for name, value in group.items():
        if name in COMPUTING or isinstance(value, bool):
            continue
        if isinstance(value, (list, tuple)):
            found[name] = tuple(float(v) for v in value)
        elif isinstance(value, (int, float, Tensor)):
            found[name] = float(value)
    return found


def _unwrapped(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The state as it is, and what lies under each wrapper's name."""
    yield state
    for wrapper in WRAPPERS:
        inside = {
            name.removeprefix(wrapper): value
            for name, value in state.items()
            if name.startswith(wrapper)
        }
        if inside:
            yield from _unwrapped(inside)


def _plain(name: str) -> str:
    return name.replace(COMPILED, "")


def _place(name: str, value: Any) -> Any:
    """Alike for names of one tensor."""
    if isinstance(value, Tensor) and value.numel():
        return value.data_ptr(), value.shape
    return name


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()
