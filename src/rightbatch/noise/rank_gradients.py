"""Each rank's gradient is a group: read on its way into the exchange between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rightbatch.core.errors import SettingError
from rightbatch.core.torch_private import reduce_scatter_class
from rightbatch.noise.capture.group_norms import ParameterKey
from rightbatch.noise.group_source import GroupSource, MetricsFor
from rightbatch.noise.guard import METRICS, Guard
from rightbatch.noise.norms import squared_norm
from rightbatch.noise.statistics.samples import (
    Sample,
    sample_from_groups,
    with_metrics,
)


def world_size_of(model: nn.Module) -> int:
    """Ranks that average their gradients for this model; 1 if none do."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    wrapped = any(isinstance(m, DistributedDataParallel) for m in model.modules())
    return dist.get_world_size() if wrapped or sharded_modules(model) else 1


def sharded_modules(model: nn.Module) -> list[tuple[str, Any]]:
    """The modules that ``fully_shard`` was applied to, by name."""
    from torch.distributed.fsdp import FSDPModule

    return [(n, m) for n, m in model.named_modules() if isinstance(m, FSDPModule)]


class _Part(NamedTuple):
    """A gradient on its way: this rank's part, and the mean after the exchange."""

    index: int
    gradient: Tensor
    local: Tensor
    copy: Tensor | None


class RankGradients(GroupSource):
    """Norms of this rank's gradient, and of the mean over all ranks.

    They are kept by unit: a parameter, or with FSDP a wrapped module.

    Attributes:
        units: Names of the wrapped modules; None without FSDP.
        interval: Steps until the next measured one, as this rank wishes.
        agreed_interval: The mean over the ranks, known after `finish`.

    Raises:
        SettingError: The gradients cannot be read on their way.
    """

    name = "ranks"
    why = "the ranks' gradients are groups already, read on their way"

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Tensor],
        population: int | None,
        world_size: int,
        guard: Guard,
    ) -> None:
        super().__init__(parameters, population, guard)
        self.world_size = world_size
        guard.together = True
        self.units: list[str] | None = None
        self.interval = self.agreed_interval = 0.0
        self._active = False  # otherwise the exchange only passes
        self._local: dict[int, Tensor] = {}  # squared norm of this rank's part
        self._mean: dict[int, Tensor] = {}  # of the mean; with FSDP of a shard of it
        self._repeated = False  # a unit was exchanged more than once in the step
        if isinstance(model, DistributedDataParallel):
            self._read_ddp(model)
        else:
            self.units = self._read_fsdp(model)

    def begin(self, metrics_for: MetricsFor, last_batches: tuple[int, ...]) -> None:
        self._active, self.problem = True, ""
        self._local, self._mean, self._repeated = {}, {}, False
        sizes = (sum(last_batches),) * self.world_size
        self.metrics = metrics_for(sizes) if self.units is None else None

    def finish(self, batches: Sequence[int]) -> Sample | None:
        self._active = False
        examples, interval, repeated, failing, no_metrics = self._agree(batches)
        self.agreed_interval = interval / self.world_size
        if failing:
            self.guard.stop(self.guard.failing or "an error on another rank")
            return None
        if repeated:
            self.problem = "gradients were exchanged more than once in the step"
            return None
        if no_metrics:
            self.guard.lost.setdefault(METRICS, "an error on another rank")
            self.metrics = None
        rows = {} if self.metrics is None else self.metrics.rows()
        flat = [t for row in rows.values() for t in row]
        numbers = torch.cat(flat).double().tolist() if flat else []
        parts, totals, summed = self._sum_over_ranks(numbers)
        sizes = [round(examples / self.world_size)] * self.world_size
        sample = sample_from_groups(parts, totals, sizes, self.population)
        if self.metrics is None:
            return sample
        means = summed.view(len(rows), 2, -1) / self.world_size
        for name, (first, second) in zip(rows, means, strict=True):
            # Every rank saw its own part, and all the same total.
            parts = first if name == "sign" else first * self.world_size
            rows[name] = parts, second
        return with_metrics(sample, self.metrics, rows)

    def cancel(self) -> None:
        self._active = False

    def _agree(self, batches: Sequence[int]) -> list[float]:
        """How it went on all ranks, summed: a collective call before any other.

        Returns:
            Examples; steps to the next measured one; how many ranks exchanged a
            gradient twice, are failing, have no norms in the optimizer's metrics.
        """
        flags = (self._repeated, self.guard.failing, METRICS in self.guard.lost)
        numbers = [float(sum(batches)), self.interval, *(float(bool(f)) for f in flags)]
        device = self.parameters[0].device
        summed = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return summed.tolist()

    def _add(self, unit: int, local: Tensor, mean: Tensor) -> None:
        """One unit's squared norms."""
        self._repeated |= unit in self._local
        self._local[unit], self._mean[unit] = local, mean

    def _sum_over_ranks(
        self, numbers: Sequence[float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Squared norms of parts and of totals, and the sum of some more numbers.

        A collective call: every rank makes it at the end of a measured step.
        """
        device = self.parameters[0].device
        count = len(self.parameters if self.units is None else self.units)
        zero = torch.zeros((), device=device)
        local = [self._local.get(i, zero).double() for i in range(count)]
        mean = [self._mean.get(i, zero).double() for i in range(count)]
        more = torch.tensor(list(numbers), dtype=torch.float64, device=device)
        everything = torch.cat([torch.stack(local), torch.stack(mean), more])
        dist.all_reduce(everything)
        parts, totals = everything[:count], everything[count : 2 * count]
        if self.units is None:
            totals = totals / dist.get_world_size()  # every rank has the whole mean
        return parts, totals, everything[2 * count :]

    def _read_ddp(self, model: DistributedDataParallel) -> None:
        """Register a communication hook that averages as DDP does, and reads."""
        indices = {id(p): i for i, p in enumerate(self.parameters)}

        def average(source: RankGradients, bucket: Any) -> Any:
            buffer, n = bucket.buffer(), dist.get_world_size(model.process_group)
            buffer.div_(n)
            run = source.guard.run
            read = run(source._look_before, bucket, indices) if source._active else None
            work = dist.all_reduce(buffer, group=model.process_group, async_op=True)

            def done(future: Any) -> Tensor:
                if read is not None:
                    run(source._look_after, read)
                return future.value()[0]

            return work.get_future().then(done)

        # DDP reads a hook's annotations, and takes none that are text.
        average.__annotations__.clear()
        try:
            model.register_comm_hook(self, average)
        except RuntimeError as error:
            raise SettingError(
                "the model's gradients cannot be read on their way between ranks",
                seen=str(error).splitlines()[0],
                why="DDP takes one communication hook, before the first backward pass",
                fix="make the monitor before training, and leave out other hooks",
            ) from error

    def _look_before(self, bucket: Any, indices: dict[int, int]) -> list[_Part]:
        """This rank's part of some gradients, divided by the number of ranks."""
        parts = []
        for p, g in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if id(p) in indices:
                # A copy is kept of one bucket, for a moment.
                copy = None if self.metrics is None else g.clone()
                parts.append(_Part(indices[id(p)], g, squared_norm(g), copy))
        return parts

    def _look_after(self, parts: Sequence[_Part]) -> None:
        """The same gradients, now the mean over all ranks."""
        for index, mean, local, copy in parts:
            self._add(index, local, squared_norm(mean))
            if self.metrics is not None and copy is not None:
                key, last = ParameterKey(index), self.world_size - 1
                self.metrics.observe(key, mean - copy, copy, last)

    def _read_fsdp(self, model: nn.Module) -> list[str]:
        """Put a reader in front of FSDP2's reduce-scatter, module by module."""
        source = self
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
                run, local = source.guard.run, None
                if source._active:
                    local = run(squared_norm, input_tensor)
                work = super().__call__(
                    output_tensor, input_tensor, group, op, async_op
                )
                if local is not None:
                    # The mean's part is the gradient over the ranks, if averaged here.
                    share = 1 / group.size() if op == dist.ReduceOp.AVG else 1.0
                    if work is not None:
                        work.wait()
                    run(self.look, local * share**2, output_tensor)
                return work

            def look(self, local: Tensor, mean: Tensor) -> None:
                source._add(self.unit, local, squared_norm(mean))

        modules = sharded_modules(model)
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
        return [name or "(root)" for name, _ in modules]
