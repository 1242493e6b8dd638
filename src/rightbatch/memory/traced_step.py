"""A step traced under fake tensors: what is alive after each operation, without a run.

Under torch's `FakeTensorMode` tensors have a shape and no content, so that a step of
any size costs only its Python code. A step that looks into its tensors has no meaning
there: it is traced on small real ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.core.guards import preserved_rng
from rightbatch.core.torch_private import (
    FakeCopyMode,
    FakeTensorMode,
    is_compiled,
    looks_into_tensors,
    quiet_fake_tensors,
)
from rightbatch.core.trees import map_tensors, to_device
from rightbatch.job.job import Job, copied_module
from rightbatch.memory.child_process import AVAILABLE, attempt, in_child
from rightbatch.memory.live_bytes import LiveTrace
from rightbatch.memory.peak import resident
from rightbatch.memory.step import Step

PATIENCE_S = 300.0  # of Python code that makes no tensor [assumed]
CUDA_ROUNDING = 512  # bytes; kMinBlockSize of torch's caching allocator [cited]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTrace:
    """What a step of ``micro_batch`` examples keeps alive, operation by operation.

    Attributes:
        micro_batch: Examples in each micro-batch of the step.
        operations: In order.
        places: Phase and module of each.
        bytes: Alive after each.
        wasted: What the allocator's rounding adds to that.
        parameters: Bytes of the parameters.
        buffers: Bytes of the buffers.
        gradients: Bytes of the gradients.
        state: Bytes of the optimizer's state.
        unit: Bytes of the largest module that would be sharded as one.
    """

    micro_batch: int
    operations: tuple[str, ...]
    places: tuple[str, ...]
    bytes: tuple[int, ...]
    wasted: tuple[int, ...]
    parameters: int
    buffers: int
    gradients: int
    state: int
    unit: int


class UntraceableError(JobError):
    """The step needs numbers that only a real run has."""


def trace_step(
    step: Step,
    sizes: tuple[int, ...],
    *,
    cuda: bool = False,
    real: bool = False,
    limit: float | None = None,
) -> tuple[StepTrace, ...]:
    """Trace a step at each size, the optimizer's state already there.

    In a forked child where there can be one: what the job's own code remembers from
    call to call (cached masks, a model made once) must not come to hold fake tensors.

    Args:
        step: Its model is made under fake tensors: one of any size costs nothing.
        sizes: Examples of a micro-batch.
        cuda: Predict for a CUDA device: its rounding, and optimizers that update all
            parameters at once.
        real: With real tensors: the steps are made.
        limit: Bytes that those may take.

    Raises:
        UntraceableError: The step looks into its tensors, is compiled, or takes another
            way at another size.
    """

    def trace() -> tuple[StepTrace, ...]:
        return _trace(step, sizes, cuda, real)

    if AVAILABLE and not torch.cuda.is_initialized():
        answer = in_child(trace, limit=limit if real else None, patience_s=PATIENCE_S)
    else:
        with preserved_rng():
            answer = attempt(trace)
    traces = answer.value
    if not isinstance(traces, tuple):
        seen = answer.seen
        if looks_into_tensors(seen):
            seen = "it looks into its tensors, as .item() does"
        raise UntraceableError(
            f"the step cannot be traced{'' if real else ' without running it'}",
            seen=seen,
            why="" if real else "a traced step has shapes and no content",
            fix="leave .item(), float(tensor) and `if tensor:` out of model and loss; "
            "and see that they run at this shape",
        )
    if len({trace.operations for trace in traces}) > 1:
        counts = [
            f"{len(trace.operations)} operations at {trace.micro_batch}"
            for trace in traces
        ]
        raise UntraceableError(
            "the step takes another way at another batch size",
            seen=", ".join(counts),
            why="memory between those that were traced cannot be derived from it",
        )
    return traces


def _trace(
    step: Step, sizes: tuple[int, ...], cuda: bool, real: bool
) -> tuple[StepTrace, ...]:
    batches = [step.batch(size) for size in sizes]
    mode = None if real else FakeTensorMode(allow_non_fake_inputs=True)
    with quiet_fake_tensors(), nullcontext() if mode is None else mode:
        model = step.job.make_model() if mode is None else _fake_model(step.job, mode)
        if is_compiled(model):
            raise JobError("the model is compiled")
        optimizer = step.job.make_optimizer(model)
        if cuda:
            _update_at_once(optimizer)
        run = _Traced(step, model, optimizer, mode, CUDA_ROUNDING if cuda else 1)
        run.trace(batches[0], sizes[0])  # makes the optimizer's state
        return tuple(
            run.trace(batch, size) for batch, size in zip(batches, sizes, strict=True)
        )


def _fake_model(job: Job, mode: FakeTensorMode) -> nn.Module:
    """The job's model without content, made where it trains: it cannot be moved."""
    job_anywhere = dataclasses.replace(job, device=None)
    if isinstance(job.model, nn.Module):
        with FakeCopyMode(mode):
            fake = copied_module(job.model)
        job_anywhere = dataclasses.replace(job_anywhere, model=lambda: fake)
    device = torch.device(job.device or "cpu")
    absent = device.type == "cuda" and not torch.cuda.is_available()
    with nullcontext() if absent or job.device is None else device:
        return job_anywhere.make_model()


def _update_at_once(optimizer: torch.optim.Optimizer) -> None:
    """Torch's own choice for parameters on a CUDA device."""
    for group in optimizer.param_groups:
        chosen = group.get("fused") or group.get("differentiable")
        if group.get("foreach", False) is None and not chosen:
            group["foreach"] = True


@dataclass(frozen=True, slots=True)
class _Traced:
    """A model and its optimizer, fake or real (``mode`` None), whose steps are traced.

    ``rounding`` is the size in bytes whose multiples the allocator hands out.
    """

    step: Step
    model: nn.Module
    optimizer: torch.optim.Optimizer
    mode: FakeTensorMode | None
    rounding: int

    def trace(self, batch: Any, size: int) -> StepTrace:
        self.optimizer.zero_grad(set_to_none=True)
        with LiveTrace(self.rounding) as trace:
            parts = []
            for tensors in resident(self.model, self.optimizer):
                before = trace.current
                trace.add(tensors)
                parts.append(trace.current - before)
            parameters, buffers, state = parts
            with trace.watching(self.model, self.optimizer):
                copies = self._copies(batch, trace)
                self.step.run(self.model, self.optimizer, copies, size)
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return StepTrace(
            micro_batch=size,
            operations=tuple(trace.operations),
            places=tuple(trace.places),
            bytes=tuple(trace.bytes),
            wasted=tuple(trace.wasted),
            parameters=parameters,
            buffers=buffers,
            gradients=sum(grad.untyped_storage().nbytes() for grad in grads),
            state=state,
            unit=_largest_unit(self.model),
        )

    def _copies(self, batch: Any, trace: LiveTrace) -> Iterator[Any]:
        """The batch anew for each micro-batch, made when asked for."""
        device = next(self.model.parameters()).device

        def new(tensor: Tensor) -> Tensor:
            copied = tensor.clone()
            return copied if self.mode is None else self.mode.from_tensor(copied)

        for _ in range(self.step.accumulation):
            copied = to_device(map_tensors(new, batch), device)
            trace.add(copied)
            yield copied
            del copied


def _largest_unit(model: nn.Module) -> int:
    """Of the repeated blocks, and of what is left: as FSDP2 shards a model here."""
    blocks = [
        block
        for module in model.modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        for block in module
    ]
    sizes, taken = [], set[int]()
    for block in [*reversed(blocks), model]:  # inner blocks are units of their own
        rest = [p for p in block.parameters() if id(p) not in taken]
        taken |= {id(p) for p in rest}
        sizes.append(sum(p.nbytes for p in rest))
    return max(sizes)
