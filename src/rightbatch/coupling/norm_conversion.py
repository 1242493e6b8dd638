"""BatchNorm layers of a model replaced by others, and given back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.torch_private import BatchNorm, RunningNorm, share_hooks
from rightbatch.core.whole_number import whole_number
from rightbatch.coupling.ghost_norm import GhostBatchNorm
from rightbatch.coupling.synchronized_norm import SyncBatchNorm

Target = Literal["group", "layer", "sync", "ghost", "frozen"]
# Groups, and channels that each has at the least: with two values in one nothing but
# their order is left. [cited: Wu, He 2018, arXiv:1803.08494, table 3: 32 groups, and 16
# channels each, are about equally good]
GROUPS, CHANNELS = 32, 16
# Of one example without positions: by its own mean and deviation, one channel is zero
# and two are plus and minus one. [derived]
LEAST_CHANNELS = 4
WEIGHTS = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# What may be replaced: whoever has another forward pass does something else too.
FORWARDS = {
    kind.forward
    for kind in (BatchNorm, nn.SyncBatchNorm, SyncBatchNorm, GhostBatchNorm)
}


class FrozenBatchNorm(RunningNorm):
    """BatchNorm by its running statistics in training mode too; they stay."""

    def forward(self, input: Tensor) -> Tensor:
        """The input, by the running statistics."""
        moments = self.running_mean, self.running_var
        affine = self.weight, self.bias
        return F.batch_norm(input, *moments, *affine, False, 0.0, self.eps)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NormConversion:
    """Layers that have been replaced in a model.

    Attributes:
        model: Where.
        to: By what.
        names: Of the layers, as ``model.named_modules`` has them; of one that is used
            in several places its first.
        before: Every place's name and its earlier layer.
        after: Every place's name and the layer there now.
    """

    model: nn.Module
    to: Target
    names: tuple[str, ...]
    before: dict[str, nn.Module]
    after: dict[str, nn.Module]

    def __repr__(self) -> str:
        kinds = {type(layer).__name__ for layer in self.after.values()}
        names = ", ".join(self.names)
        return f"{len(self.names)} BatchNorm -> {', '.join(sorted(kinds))}: {names}"

    def undo(self) -> None:
        """Give the earlier layers back, with weights and statistics as they are now.

        Statistics that the other layers did not keep are as before.

        Raises:
            SettingError: A layer has been replaced again since.
        """
        for name, layer in self.after.items():
            if self.model.get_submodule(name) is not layer:
                raise SettingError(
                    "a converted layer has been replaced since",
                    seen=f"{name} is another {type(layer).__name__} or something else",
                    fix="undo the later conversion first",
                )
        for name, layer in self.after.items():
            earlier = self.before[name]
            _hand_over(layer, earlier)
            self.model.set_submodule(name, earlier)


def convert_norms(
    model: nn.Module,
    to: Target,
    *,
    group: int | None = None,
    groups: int | None = None,
    process_group: Any = None,
) -> NormConversion:
    """Replace every BatchNorm of a model, in place.

    Weights stay the same ``nn.Parameter`` objects and running statistics the same
    tensors, so an optimizer that holds them goes on; modes, hooks and
    ``requires_grad`` are kept. A layer used in several places stays one layer.

    ==========  ====================================================  ================
    ``to``      what each layer becomes                               in eval mode
    ==========  ====================================================  ================
    "sync"      `SyncBatchNorm`: over the examples of all ranks       as before
    "ghost"     `GhostBatchNorm`: over ``group`` examples             as before
    "frozen"    by the running statistics, which stay                 as before
    "group"     GroupNorm: over groups of an example's channels       another function
    "layer"     GroupNorm of one group: over all channels             another function
    ==========  ====================================================  ================

    After "group", "layer" and "frozen" examples no longer touch each other. The first
    two go over all positions of an example: over time too, in a sequence model.

    Args:
        model: Before it is sharded by ``fully_shard``; wrapped in DDP or not.
        to: What its BatchNorm layers become.
        group: For "ghost": examples that are normalised together.
        groups: For "group": of each layer's channels; default: what 32 and their
            number have in common, halved until each has 16 channels.
        process_group: For "sync": ranks that share statistics; default: all, or those
            of a ``torch.nn.SyncBatchNorm``.

    Returns:
        What was converted; its ``undo()`` gives the earlier layers back.

    Raises:
        JobError: The model has no BatchNorm, is one itself, or has one that cannot be
            replaced: lazy, sharded, with its own forward pass or parametrization,
            without the running statistics that "frozen" needs, or a BatchNorm1d of
            fewer than four channels to become a "group" or "layer".
        SettingError: An argument makes no sense; ``groups`` do not divide the channels.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 32), nn.BatchNorm1d(32))
        >>> conversion = convert_norms(model, "group")
        >>> conversion.names, model[1].num_groups, model[1].weight.shape
        (('1',), 2, torch.Size([32]))
        >>> conversion.undo()
        >>> type(model[1]).__name__
        'BatchNorm1d'

    References:
        GroupNorm: Wu, He 2018, arXiv:1803.08494.
    """
    _check_arguments(to, group, groups)
    places = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, BatchNorm)
    ]
    if not places:
        raise JobError("the model has no BatchNorm", seen=type(model).__name__)
    if not places[0][0]:
        raise JobError(
            "the model is a BatchNorm itself",
            seen=type(model).__name__,
            why="a layer is replaced in the module that holds it",
            fix="convert_norms(nn.Sequential(model), ...)",
        )
    made: dict[nn.Module, nn.Module] = {}
    names: list[str] = []
    for name, layer in places:  # all are made before any is replaced
        if layer in made:
            continue
        _check_layer(name, layer, to)
        names.append(name)
        channels = layer.num_features
        if to == "ghost":
            new: nn.Module = GhostBatchNorm(group=group or 0, **_settings(layer))
        elif to == "sync":
            shared = process_group or getattr(layer, "process_group", None)
            new = SyncBatchNorm(process_group=shared, **_settings(layer))
        elif to == "frozen":
            new = FrozenBatchNorm(**_settings(layer))
        else:
            number = 1 if to == "layer" else groups or default_groups(channels)
            if channels % number:
                raise SettingError(
                    "groups must divide the channels of every layer",
                    seen=f"groups={number}, {channels} channels in {name}",
                    fix=f"groups={math.gcd(number, channels)}, or leave it out",
                )
            kept = {"eps": layer.eps, "affine": layer.affine, "device": "meta"}
            new = nn.GroupNorm(number, channels, **kept)
        _hand_over(layer, new)
        made[layer] = new
    after = {name: made[layer] for name, layer in places}
    for name, new in after.items():
        model.set_submodule(name, new)
    return NormConversion(model, to, tuple(names), dict(places), after)


def default_groups(channels: int) -> int:
    """Groups of a GroupNorm: as many as 32 and the channels have in common.

    Halved until each has 16 channels.

    Example:
        >>> [default_groups(channels) for channels in (16, 64, 96, 512, 2048, 37)]
        [1, 4, 4, 32, 32, 1]
    """
    groups = math.gcd(GROUPS, channels)
    while groups > 1 and channels // groups < CHANNELS:
        groups //= 2
    return groups


def _check_arguments(to: str, group: int | None, groups: int | None) -> None:
    targets = get_args(Target)
    if to not in targets:
        raise SettingError(
            "to is none of the kinds there are",
            seen=f"to={to!r}",
            fix=" or ".join(f'to="{target}"' for target in targets),
        )
    for name, value, kind in (("group", group, "ghost"), ("groups", groups, "group")):
        if value is not None and to != kind:
            raise SettingError(f'{name} is for to="{kind}" only', seen=f"to={to!r}")
    if to == "ghost":
        whole_number(group, "group", least=2)
    if groups is not None:
        whole_number(groups, "groups")


def _check_layer(name: str, layer: Any, to: Target) -> None:
    """Refuse what would lose something by being replaced."""
    tensors = {*dict(layer.named_parameters()), *dict(layer.named_buffers())}
    few = isinstance(layer, nn.BatchNorm1d) and layer.num_features < LEAST_CHANNELS
    reason, fix = "", ""
    if not layer.num_features:  # lazy
        reason, fix = "does not know its channels yet", "one forward pass before"
    elif type(layer).forward not in FORWARDS:
        reason = "has its own forward pass"
    elif tensors - {*WEIGHTS, *STATISTICS} or any(layer.children()):
        reason = "holds more than a BatchNorm does, such as a parametrization"
    elif hasattr(layer.weight, "full_tensor"):
        reason, fix = "is sharded", "convert before fully_shard"
    elif to == "frozen" and layer.running_mean is None:
        reason, fix = "keeps no running statistics", 'to="group"'
    elif to == "frozen" and not _has_statistics(layer):
        reason, fix = "has taken no statistics yet", "load or train its weights before"
    elif to in ("group", "layer") and few:
        reason = f"has {layer.num_features} channels: their values would say nothing"
        fix = 'to="frozen", or another layer by hand'
    if reason:
        raise JobError(
            f"a {type(layer).__name__} {reason}", seen=f"layer {name}", fix=fix
        )


def _has_statistics(layer: Any) -> bool:
    """Whether it has been trained or loaded; on the meta device that is not known."""
    if layer.running_mean.is_meta or layer.num_batches_tracked:
        return True
    return bool(layer.running_mean.any())


def _settings(layer: Any) -> dict[str, Any]:
    """Arguments of a layer, for another of its family whose tensors come later."""
    fields = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    return {field: getattr(layer, field) for field in fields} | {"device": "meta"}


def _hand_over(before: Any, after: Any) -> None:
    """Give a layer the weights, statistics, mode and hooks of another."""
    for name in (*WEIGHTS, *STATISTICS):
        if hasattr(before, name) and hasattr(after, name):
            setattr(after, name, getattr(before, name))
    after.training = before.training
    share_hooks(before, after)
