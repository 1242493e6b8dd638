"""One training step traced: the memory alive after each of its operations.

Under torch's ``FakeTensorMode`` a step is made of tensors that have a shape and no
content. What they would occupy is known to the byte, for the price of the Python
code alone. A step that looks into its tensors is traced on small real ones instead.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from rightbatch.core.errors import JobError
from rightbatch.core.guards import preserved_rng
from rightbatch.core.trees import map_tensors, to_device
from rightbatch.data.order.index_stream import IndexStream
from rightbatch.job.job import Job
from rightbatch.memory.child_process import AVAILABLE, attempt, in_child
from rightbatch.memory.live_bytes import LiveTrace
from rightbatch.memory.peak import resident
from rightbatch.training.training import Training, accumulate

PATIENCE_S = 300.0  # of Python code that makes no tensor [assumed]
CUDA_ROUNDING = 512  # bytes; kMinBlockSize of torch's caching allocator [cited]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a step of ``micro_batch`` examples keeps alive, operation by operation.

    Attributes:
        micro_batch: Examples in each piece of the step.
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


class CannotTrace(JobError):
    """The step needs numbers that only a real run has."""


MakeBatch = Callable[[int], Any]


def probes_of(
    job: Job,
    make_batch: MakeBatch,
    sizes: tuple[int, ...],
    *,
    pieces: int = 1,
    cuda: bool = False,
    real: bool = False,
    limit: float | None = None,
) -> tuple[Probe, ...]:
    """Trace one step at each size, the optimizer's state already there.

    In a forked child where there can be one: what the job's own code remembers from
    call to call (cached masks, a model made once) must not come to hold fake tensors.

    Args:
        job: Its factory is called under fake tensors: a model of any size costs
            nothing.
        make_batch: ``count ->`` a real batch of so many examples, on the CPU.
        sizes: Examples of a piece.
        pieces: How many of them are accumulated in the step.
        cuda: Predict for a CUDA device: its rounding, and optimizers that update all
            parameters at once.
        real: With real tensors: the steps are made.
        limit: Bytes that those may take.

    Raises:
        CannotTrace: The step looks into its tensors, is compiled, or takes another way
            at another size.
    """

    def trace() -> tuple[Probe, ...]:
        return _trace(job, make_batch, sizes, pieces, cuda, real)

    if AVAILABLE and not torch.cuda.is_initialized():
        answer = in_child(trace, limit=limit if real else None, patience_s=PATIENCE_S)
    else:
        with preserved_rng():
            answer = attempt(trace)
    if not isinstance(answer.value, tuple):
        seen = answer.seen
        if "DataDependent" in seen or "_local_scalar_dense" in seen:
            seen = "it looks into its tensors, as .item() does"
        raise CannotTrace(
            "the step cannot be traced"
            if real
            else "the step cannot be traced without running it",
            seen=seen,
            why="" if real else "a traced step has shapes and no content",
            fix="leave .item(), float(tensor) and `if tensor:` out of model and loss; "
            "and see that they run at this shape",
        )
    if len({p.operations for p in answer.value}) > 1:
        raise CannotTrace(
            "the step takes another way at another batch size",
            seen=", ".join(
                f"{len(p.operations)} operations at {p.micro_batch}"
                for p in answer.value
            ),
            why="memory between the sizes traced cannot be told from it",
        )
    return answer.value


def _trace(
    job: Job,
    make_batch: MakeBatch,
    sizes: tuple[int, ...],
    pieces: int,
    cuda: bool,
    real: bool,
) -> tuple[Probe, ...]:
    batches = [make_batch(size) for size in sizes]
    mode = None if real else FakeTensorMode(allow_non_fake_inputs=True)
    with _quietly(), nullcontext() if mode is None else mode:
        training = _started(job, mode, cuda)
        copies = _copies(batches[0], 1, training.device, mode)
        _step(training, copies, [sizes[0]])  # makes the state
        return tuple(
            _traced(training, batch, size, pieces, mode, cuda)
            for batch, size in zip(batches, sizes, strict=True)
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's own account of what it could not trace: we tell it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _started(job: Job, mode: FakeTensorMode | None, cuda: bool) -> Training:
    """The job at its beginning, fake."""
    # Fake parameters cannot be moved, so they are made where they belong.
    there = torch.device(job.device or "cpu")
    absent = there.type == "cuda" and not torch.cuda.is_available()
    placed = dataclasses.replace(job, device=None) if mode is not None else job
    if isinstance(job.model, nn.Module) and mode is not None:
        model: Any = job.model
        with FakeCopyMode(mode):
            fake = copy.deepcopy(model)
        placed = dataclasses.replace(placed, model=lambda: fake)
    with nullcontext() if absent or mode is None or job.device is None else there:
        model = placed.make_model()
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise JobError("the model is compiled")
    optimizer = placed.make_optimizer(model)
    if cuda:
        for group in optimizer.param_groups:
            chosen = group.get("fused") or group.get("differentiable")
            if group.get("foreach", False) is None and not chosen:
                group["foreach"] = True  # torch's own choice there
    return Training(placed, model, optimizer, IndexStream(job.length, seed=job.seed))


def _step(training: Training, batches: Iterator[Any], sizes: list[int]) -> None:
    accumulate(training.job, training.model, training.optimizer, batches, sizes)
    training.optimizer.step()


def _copies(
    batch: Any,
    pieces: int,
    device: torch.device,
    mode: FakeTensorMode | None,
    trace: LiveTrace | None = None,
) -> Iterator[Any]:
    """The batch anew for each piece, made when asked for; without content if fake."""

    def new(tensor: Tensor) -> Tensor:
        return tensor.clone() if mode is None else mode.from_tensor(tensor.clone())

    for _ in range(pieces):
        copied = to_device(map_tensors(new, batch), device)
        if trace is not None:
            trace.add(copied)
        yield copied
        del copied


def _traced(
    training: Training,
    batch: Any,
    size: int,
    pieces: int,
    mode: FakeTensorMode | None,
    cuda: bool,
) -> Probe:
    training.optimizer.zero_grad(set_to_none=True)
    with LiveTrace(CUDA_ROUNDING if cuda else 1) as trace:
        parts = []
        for tensors in resident(training):
            before = trace.current
            trace.add(tensors)
            parts.append(trace.current - before)
        with trace.watching(training.model, training.optimizer):
            copies = _copies(batch, pieces, training.device, mode, trace)
            _step(training, copies, [size] * pieces)
    grads = [p.grad for p in training.model.parameters() if p.grad is not None]
    return Probe(
        micro_batch=size,
        operations=tuple(trace.operations),
        places=tuple(trace.places),
        bytes=tuple(trace.bytes),
        wasted=tuple(trace.wasted),
        parameters=parts[0],
        buffers=parts[1],
        gradients=sum(g.untyped_storage().nbytes() for g in grads),
        state=parts[2],
        unit=_largest_unit(training.model),
    )


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
        own = [p for p in block.parameters() if id(p) not in taken]
        taken |= {id(p) for p in own}
        sizes.append(sum(p.nbytes for p in own))
    return max(sizes)
