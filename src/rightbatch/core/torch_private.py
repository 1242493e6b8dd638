"""What torch promises to nobody: its private functions, and the texts of its errors.

Everything of this kind that rightbatch touches is here, each as a small named function,
so that a new version of torch is tried in one place. All of it was run on torch 2.13.0
[measured: the whole test suite], the oldest version that ``pyproject.toml`` allows.
"""

from __future__ import annotations

import errno
import functools
import logging
import re
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode as FakeCopyMode
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_iter as tree_iter
from torch.utils._pytree import tree_map as tree_map
from torch.utils.hooks import RemovableHandle

from rightbatch.core.text import first_line, message

# Every kind of batch normalisation, of those that may keep running statistics (instance
# normalisation too), and of dropout, is one of these.
BatchNorm: Any = nn.modules.batchnorm._BatchNorm
RunningNorm: Any = nn.modules.batchnorm._NormBase
Dropout: Any = nn.modules.dropout._DropoutNd


# Tensors and the autograd graph


def storage_id(tensor: Tensor) -> int:
    """A number that all tensors on one storage share while it lives (``_cdata``)."""
    return tensor.untyped_storage()._cdata


def as_no_view(tensor: Tensor) -> Tensor:
    """The same numbers, not known as a view: autograd copies nothing for them.

    Only where nothing else refers to what it is a view of (``_unsafe_view``, as
    torch's own matmul ends).
    """
    if not tensor._is_view():
        return tensor
    return torch.ops.aten._unsafe_view(tensor, tensor.shape)


def copy_all(into: list[Tensor], of: list[Tensor]) -> None:
    """Copy the numbers of tensors of one type, device, dtype and layout, all at once.

    What is not plain and dense is copied one by one.
    """
    with torch.no_grad():
        if type(of[0]) is Tensor and of[0].layout == torch.strided:
            torch._foreach_copy_(into, of)
        else:
            for copy, tensor in zip(into, of, strict=True):
                copy.copy_(tensor)


def in_backward_pass() -> bool:
    """Whether autograd is running here (``_current_graph_task_id``)."""
    return torch._C._current_graph_task_id() != -1


def acts_on_arrival(parameter: Tensor) -> bool:
    """Whether something is done as soon as its gradient is complete, as an update.

    (``_post_accumulate_grad_hooks``.)
    """
    return bool(parameter._post_accumulate_grad_hooks)


def saved_tensor_hook() -> Any:
    """What packs saved tensors here, by identity; None: nothing does.

    Checkpointing and offloading do (``_top_saved_tensors_default_hooks``).
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return None if hooks is None else hooks[0]


# Calls of torch's functions


class LightDispatchMode(TorchDispatchMode):
    """A mode that does not import torch's compiler, which takes seconds.

    (``_should_skip_dynamo``.) What is compiled must run as it is written inside.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@contextmanager
def as_written() -> Iterator[None]:
    """What ``torch.compile`` has wrapped runs as it is written inside.

    Without ``torch._dynamo`` nothing is wrapped, and its import takes seconds.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile")  # beside our hooks
        yield


def remove_global_hook(handle: RemovableHandle) -> None:
    """Take a global module hook away; torch itself leaves its ``with_kwargs`` behind.

    Its rest makes every compiled model warn from then on.
    """
    handle.remove()
    nn.modules.module._global_forward_hooks_with_kwargs.pop(handle.id, None)


def without_torch_function() -> AbstractContextManager[None]:
    """Calls inside are not seen by function modes (``DisableTorchFunction``)."""
    return torch._C.DisableTorchFunction()


@functools.cache
def without_override_check(function: Any) -> Callable[..., Any] | None:
    """A torch function's Python body without its first look for overrides.

    With a function mode active that look would send the call straight back to the
    mode. None if it has no such body (a call of ``has_torch_function``).
    """
    if not isinstance(function, types.FunctionType):
        return None
    code = function.__code__
    if "has_torch_function" not in code.co_names:
        return None
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    body = types.FunctionType(code, names, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def has_scheduler(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a learning-rate scheduler was made for it.

    One marks the optimizer's step method (``_wrapped_by_lr_sched``), and keeps the rate
    that it began with in the param groups.
    """
    groups = optimizer.param_groups
    marked = hasattr(optimizer.step, "_wrapped_by_lr_sched")
    return marked or any("initial_lr" in group for group in groups)


def inner_schedulers(scheduler: Any) -> list[Any]:
    """The schedulers that one is made of (``_schedulers``), however deep."""
    own = list(getattr(scheduler, "_schedulers", ()))
    return [*own, *(s for inner in own for s in inner_schedulers(inner))]


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` has wrapped any part of a model (``_orig_mod``)."""
    return any(hasattr(module, "_orig_mod") for module in model.modules())


def reduce_scatter_class() -> type[Any]:
    """FSDP2's own exchange of gradients, to be derived from (``fully_shard``)."""
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    return _fsdp_collectives.DefaultReduceScatter


def share_hooks(before: nn.Module, after: nn.Module) -> None:
    """Give a module the hooks of another, as the same dicts: handles still remove them.

    (``_forward_hooks`` and whatever else of a module has ``_hook`` in its name.)
    """
    hooks = {name: value for name, value in vars(before).items() if "_hook" in name}
    vars(after).update(hooks)


# Memory


@contextmanager
def quiet_fake_tensors() -> Iterator[None]:
    """Without torch's own log of what could not be traced with fake tensors."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def allocations(profiler: torch.profiler.profile) -> list[int]:
    """Bytes that torch's CPU allocator took (+) and gave back (-), in order.

    Args:
        profiler: Closed, and made with ``profile_memory=True`` (``kineto_results``).
    """
    assert profiler.profiler is not None
    result: Any = profiler.profiler.kineto_results
    events = [event for event in result.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return [event.nbytes() for event in events]


# Data workers


def worker_processes(iterator: Any) -> list[Any]:
    """The processes behind a ``DataLoader``'s iterator (``_workers``)."""
    return list(getattr(iterator, "_workers", []))


def shut_down_workers(iterator: Any) -> None:
    """End them, and return when they have ended (``_shutdown_workers``).

    Who has not after torch's own five seconds and its SIGTERM is killed.
    """
    getattr(iterator, "_shutdown_workers", lambda: None)()
    for worker in worker_processes(iterator):
        if worker.is_alive():
            worker.kill()
            worker.join()


@contextmanager
def dead_workers_wait() -> Iterator[None]:
    """A data worker that dies is told where its batch is taken, and nowhere else.

    torch raises in its handler of SIGCHLD, in the midst of whatever runs, as an update
    (``_set_SIGCHLD_handler``). Only in the main thread.
    """
    if not hasattr(signal, "SIGCHLD"):
        yield
        return
    from torch.utils.data._utils.signal_handling import _set_SIGCHLD_handler

    _set_SIGCHLD_handler()  # else it would be with the next loader
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


# Texts of errors


def is_lost_connection(error: BaseException) -> bool:
    """Whether gloo or NCCL says that another process is gone."""
    lost = (
        r"connection (closed|reset|refused)|broken pipe|connectFullMesh|remote process"
    )
    return re.search(lost, message(error), re.IGNORECASE) is not None


def looks_into_tensors(text: str) -> bool:
    """Whether tracing failed since the code looks into tensors, as ``.item()`` does."""
    return "DataDependent" in text or "_local_scalar_dense" in text


def kernel_without_second_derivative(text: str) -> bool:
    """Whether one of torch's own kernels cannot be differentiated twice.

    As attention on the CPU, and recurrent layers of cuDNN and oneDNN.
    """
    missing = r"derivative for aten::\w+ is not implemented"
    refused = r"double backwards? is not supported"
    return re.search(f"{missing}|{refused}", text, re.IGNORECASE) is not None


def no_room_for_threads(text: str) -> bool:
    """Whether there was no memory left for the stack of a thread."""
    return "Resource temporarily unavailable" in text


# Texts from the libraries' sources and users' reports, in lower case [cited:
# docs/running.md, "Out of memory"].
_CERTAIN = (
    r"out[ _]?of[ _]?(device|host)?[ _]?memory"
    r"|(cuda|hip)errormemoryallocation|mem_object_allocation_failure"
    r"|\b(cu|hip|mi|roc)\w*alloc(ation)?_?failed|cublas.*resource allocation failed"
    r"|failed to (cuda |hip )?(host )?[cm]?alloc\b|call to (cuda|hip)malloc failed"
    r"|failed to allocate (memory|[\d.]+ ?([kmgt]i?)?b)"
    r"|invalid buffer size: [\d.]+ [kmgt]|insufficient memory"
    r"|defaultcpuallocator|not enough memory: you tried to allocate"
    r"|memory not available to allocate|std::bad_alloc|cannot allocate memory"
    r"|unable to allocate [\d.]+ ([kmgtpe]i)?b(ytes)? for an array"
    r"|paging file is too small"
)
# These have other causes too: a smaller micro-batch is tried, and if that does not help
# the error is told as it came. "A primitive" is oneDNN's; shared memory is what workers
# hand batches over in.
_UNCERTAIN = (
    r"(cublas|hipblas|cudnn|cusolver)_status_(not_initialized|internal_error)"
    r"|cudnn_status_(not_supported|execution_failed)"
    r"|unable to find (a valid cudnn algorithm|an engine to execute)"
    r"|(ur_result|pi|hsa_status)_error_out_of_resources"
    r"|could not (create|execute) a (memory|primitive)"
    r"|is killed by signal: (killed|bus error)"
    r"|unable to (write to|allocate shared memory\(shm\) for) file </torch_"
    r"|error while creating shared memory segment"
)
# What only sounds like them: a wrong address, and a library loaded too late.
_NOT_MEMORY = r"illegal memory access|in static tls block"


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """An exception understood as memory that ran out.

    Attributes:
        certain: Whether the message can mean nothing else.
        text: Its first line.
    """

    certain: bool
    text: str


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """How memory ran out, or None if the exception is something else.

    Also sees it behind an exception that was raised ``from`` it, and in a group. Of one
    that was raised while it was handled, or of a group that holds others too, nobody
    knows whether memory is to blame: that is not certain.

    Example:
        >>> out_of_memory(RuntimeError("MPS backend out of memory (allocated …)"))
        OutOfMemory(certain=True, text='MPS backend out of memory (allocated …)')
        >>> out_of_memory(ValueError("out of memory is a nice title")) is None
        True
    """
    looked_at: set[int] = set()  # a chain may lead back to where it began
    certain, current = True, error
    while id(current) not in looked_at:
        looked_at.add(id(current))
        memory = _in_group(current) or _by_text(current)
        if memory is not None:
            return OutOfMemory(certain and memory.certain, memory.text)
        behind = current.__cause__
        if behind is None and not current.__suppress_context__:
            behind, certain = current.__context__, False
        if behind is None:
            return None
        current = behind
    return None


def _in_group(error: BaseException) -> OutOfMemory | None:
    if not isinstance(error, BaseExceptionGroup):
        return None
    members = [out_of_memory(member) for member in error.exceptions]
    known = [memory for memory in members if memory is not None]
    if not known:
        return None
    certain = len(known) == len(members) and all(memory.certain for memory in known)
    return OutOfMemory(certain, known[0].text)


def _by_text(error: BaseException) -> OutOfMemory | None:
    """What an exception says itself."""
    enforced = r"^\[enforce fail at [^\]]*\] (err == 0\. )?"
    first, text = re.sub(enforced, "", first_line(error)), message(error).lower()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return OutOfMemory(True, first)
    if re.search(_NOT_MEMORY, text):
        return None
    if isinstance(error, OSError):
        # A worker's comes back as text alone; others hold names of files.
        told = error.errno is None and re.search(r"\[errno 12\]|winerror 1455", text)
        lacking = error.errno == errno.ENOMEM or getattr(error, "winerror", 0) == 1455
        return OutOfMemory(True, first) if told or lacking else None
    if isinstance(error, RuntimeError):
        if re.search(_CERTAIN, text):
            return OutOfMemory(True, first)
        if re.search(_UNCERTAIN, text):
            return OutOfMemory(False, first)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a device or the machine running out of memory."""
    memory = out_of_memory(error)
    return memory is not None and memory.certain
