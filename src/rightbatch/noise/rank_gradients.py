"""Each rank's gradient is a group: read on its way into the exchange between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rightbatch.core.errors import SettingError
from rightbatch.core.torch_private import reduce_scatter_class
from rightbatch.noise.capture.group_norms import Key, Observer
from rightbatch.noise.capture.rules import square


def world(model: nn.Module) -> int:
    """Ranks that average their gradients for this model; 1 if none do."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    wrapped = any(isinstance(m, DistributedDataParallel) for m in model.modules())
    return dist.get_world_size() if wrapped or sharded_modules(model) else 1


def sharded_modules(model: nn.Module) -> list[tuple[str, Any]]:
    """The modules that ``fully_shard`` was applied to, by name."""
    from torch.distributed.fsdp import FSDPModule

    return [(n, m) for n, m in model.named_modules() if isinstance(m, FSDPModule)]


@dataclass
class Ranks:
    """Norms of this rank's gradient, and of the mean over all ranks.

    Attributes:
        count: Units: parameters, or with FSDP the wrapped modules.
        active: Whether this step is measured; otherwise the exchange only passes.
        observer: Shown the other ranks' sum and this rank's part.
        local: Squared norm of this rank's part of the mean, by unit.
        mean: Squared norm of the mean; with FSDP of this rank's shard of it.
        twice: A unit was exchanged more than once in a step.
    """

    count: int
    active: bool = False
    observer: Observer | None = None
    sharded: bool = False
    local: dict[int, Tensor] = field(default_factory=dict)
    mean: dict[int, Tensor] = field(default_factory=dict)
    twice: bool = False

    def clear(self) -> None:
        """Forget the last step."""
        self.local, self.mean, self.twice = {}, {}, False

    def add(self, unit: int, local: Tensor, mean: Tensor) -> None:
        """One unit's norms."""
        if unit in self.local:
            self.twice = True
        self.local[unit], self.mean[unit] = local, mean

    def gathered(
        self, extra: Sequence[float], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum over the ranks of parts and of totals, and of some more numbers.

        A collective call: every rank makes it at the end of a measured step.
        """
        zero = torch.zeros((), device=device)
        local = [self.local.get(i, zero).double() for i in range(self.count)]
        mean = [self.mean.get(i, zero).double() for i in range(self.count)]
        more = torch.tensor(list(extra), dtype=torch.float64, device=device)
        everything = torch.cat([torch.stack(local), torch.stack(mean), more])
        dist.all_reduce(everything)
        parts, totals = everything[: self.count], everything[self.count :][: self.count]
        if not self.sharded:
            totals = totals / dist.get_world_size()  # every rank has the whole mean
        return parts, totals, everything[2 * self.count :]


def listen_to_ddp(
    model: DistributedDataParallel, parameters: Sequence[Tensor]
) -> Ranks:
    """Register a communication hook that averages as DDP does, and reads both ends.

    Raises:
        SettingError: The model has a communication hook already.
    """
    ranks = Ranks(count=len(parameters))
    places = {id(p): i for i, p in enumerate(parameters)}

    def average(state: Ranks, bucket: Any) -> Any:
        buffer, n = bucket.buffer(), dist.get_world_size(model.process_group)
        buffer.div_(n)
        gradients, owners = bucket.gradients(), bucket.parameters()
        local = [square(g) for g in gradients] if state.active else []
        before = None
        if state.active and state.observer is not None:
            before = [g.clone() for g in gradients]  # of one bucket, for a moment
        work = dist.all_reduce(buffer, group=model.process_group, async_op=True)

        def read(future: Any) -> Tensor:
            reduced = future.value()[0]
            for k, part in enumerate(local):
                index = places.get(id(owners[k]))
                if index is None:
                    continue
                state.add(index, part, square(gradients[k]))
                if state.observer is not None and before is not None:
                    rest = gradients[k] - before[k]
                    state.observer.see(Key(index), rest, before[k], n - 1)
            return reduced

        return work.get_future().then(read)

    # DDP reads a hook's annotations, and takes none that are text.
    average.__annotations__.clear()
    try:
        model.register_comm_hook(ranks, average)
    except RuntimeError as error:
        raise SettingError(
            "the model's gradients cannot be read on their way between ranks",
            seen=str(error).splitlines()[0],
            why="DDP takes one communication hook, before the first backward pass",
            fix="make the monitor before training, and leave out other hooks",
        ) from error
    return ranks


def listen_to_fsdp(model: nn.Module) -> tuple[Ranks, list[str]]:
    """Put a reader in front of FSDP2's reduce-scatter, module by module.

    Returns:
        What it reads, and the modules' names. Parameters of one module are one unit.

    Raises:
        SettingError: A module's parameters are on several meshes.
    """
    modules = sharded_modules(model)
    ranks = Ranks(count=len(modules), sharded=True)

    base: Any = reduce_scatter_class()

    class Reader(base):
        def __init__(self, unit: int) -> None:
            self.unit = unit

        def __call__(
            self,
            output_tensor: Tensor,
            input_tensor: Tensor,
            group: dist.ProcessGroup,
            op: Any,
            async_op: bool = False,
        ) -> Any:
            # The mean's part is the gradient over the ranks, if it is averaged here.
            n = group.size()
            share = 1 / n if op == dist.ReduceOp.AVG else 1.0
            local = square(input_tensor) * share**2 if ranks.active else None
            work = super().__call__(output_tensor, input_tensor, group, op, async_op)
            if local is not None:
                if work is not None:
                    work.wait()
                ranks.add(self.unit, local, square(output_tensor))
            return work

    for unit, (_, module) in enumerate(modules):
        try:
            module.set_custom_reduce_scatter(Reader(unit))
        except ValueError as error:
            raise SettingError(
                "the model's gradients cannot be read on their way between ranks",
                seen=str(error),
                why="FSDP takes a reduce-scatter of ours only on one mesh",
                fix="shard each module on one mesh",
            ) from error
    return ranks, [name or "(root)" for name, _ in modules]
