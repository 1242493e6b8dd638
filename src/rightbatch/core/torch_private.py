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
import types
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

from rightbatch.core.text import first_line

# Every kind of batch normalisation, and of dropout, is one of these.
BatchNorm: Any = nn.modules.batchnorm._BatchNorm
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


def in_backward_pass() -> bool:
    """Whether autograd is running here (``_current_graph_task_id``)."""
    return torch._C._current_graph_task_id() != -1


def saved_tensor_hook() -> Any:
    """What packs saved tensors here, by identity; None: nothing does.

    Checkpointing and offloading do (``_top_saved_tensors_default_hooks``).
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return None if hooks is None else hooks[0]


# Calls of torch's functions


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


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` has wrapped any part of a model (``_orig_mod``)."""
    return any(hasattr(module, "_orig_mod") for module in model.modules())


def reduce_scatter_class() -> type[Any]:
    """FSDP2's own exchange of gradients, to be derived from (``fully_shard``)."""
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    return _fsdp_collectives.DefaultReduceScatter


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
    """End them, and return when they have ended (``_shutdown_workers``)."""
    getattr(iterator, "_shutdown_workers", lambda: None)()


def worker_timed_out(error: BaseException) -> bool:
    """Whether a ``DataLoader`` waited longer than its ``timeout``."""
    return isinstance(error, RuntimeError) and "DataLoader timed out" in str(error)


def worker_died(error: BaseException) -> bool:
    """Whether the process of a ``DataLoader``'s worker has ended.

    Also told by the socket that is gone by which it was to send a tensor.
    """
    if isinstance(error, (EOFError, ConnectionError, FileNotFoundError)):
        return True
    ended = r"DataLoader worker.*(exited unexpectedly|killed by signal)"
    lost = re.search(ended, str(error), re.DOTALL)
    return isinstance(error, RuntimeError) and lost is not None


# Texts of errors


def is_lost_connection(error: BaseException) -> bool:
    """Whether gloo or NCCL says that another process is gone."""
    lost = (
        r"connection (closed|reset|refused)|broken pipe|connectFullMesh|remote process"
    )
    return re.search(lost, str(error), re.IGNORECASE) is not None


def has_no_graph(error: BaseException) -> bool:
    """Whether autograd found no graph to go back through, or one already freed."""
    return any(part in str(error) for part in ("a second time", "element 0"))


def looks_into_tensors(text: str) -> bool:
    """Whether tracing failed since the code looks into tensors, as ``.item()`` does."""
    return "DataDependent" in text or "_local_scalar_dense" in text


def no_room_for_threads(text: str) -> bool:
    """Whether there was no memory left for the stack of a thread."""
    return "Resource temporarily unavailable" in text


# (kind, pattern, certain). First match wins. A form that is not certain has other
# causes too: a smaller micro-batch is tried, and if that does not help the error is
# told as it came. Texts from the libraries' sources and users' reports [cited:
# docs/running.md, "Out of memory"].
_FORMS: tuple[tuple[str, str, bool], ...] = (
    ("nccl", r"nccl.*(out of memory|unhandled cuda error.*memory)", True),
    ("nccl", r"cuda failure (\d+ )?'?out of memory", True),
    ("cublas", r"cublas_status_alloc_failed|hipblas_status_alloc_failed", True),
    ("cublas", r"cublas_status_not_initialized", False),
    ("cudnn", r"cudnn_status_alloc_failed|miopenstatusallocfailed", True),
    ("cudnn", r"cudnn_status_(internal_error|not_supported)", False),
    ("cufft", r"cufft_alloc_failed", True),
    ("solver", r"cu(solver|sparse|rand)_status_alloc(ation)?_failed", True),
    ("driver", r"cuda (driver )?error: out of memory|cudaerrormemoryallocation", True),
    ("driver", r"triton error \[cuda\]: out of memory", True),
    ("cuda", r"cuda out of memory", True),
    ("hip", r"hip (error: )?out of memory|hiperroroutofmemory", True),
    ("xpu", r"xpu out of memory|ur_result_error_out_of_(device|host)_memory", True),
    ("xpu", r"ur_result_error_out_of_resources", False),
    ("mps", r"mps backend out of memory", True),
    ("cpu", r"defaultcpuallocator|not enough memory: you tried to allocate", True),
    ("cpu", r"std::bad_alloc|cannot allocate memory", True),
    ("cpu", r"could not create a (memory object|primitive)", False),  # oneDNN
    ("device", r"out of memory", True),
)


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """An exception understood as memory that ran out.

    Attributes:
        kind: Who ran out: ``"cuda"``, ``"cublas"``, ``"cpu"``, ``"python"``, ….
        certain: Whether the message can mean nothing else.
        text: Its first line.
    """

    kind: str
    certain: bool
    text: str


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """Who ran out of memory, or None if the exception is something else.

    Also sees it behind an exception that was raised ``from`` it.

    Example:
        >>> out_of_memory(RuntimeError("MPS backend out of memory (allocated …)")).kind
        'mps'
        >>> out_of_memory(ValueError("out of memory is a nice title")) is None
        True
    """
    memory = _recognised(error)
    if memory is None and error.__cause__ is not None:
        return out_of_memory(error.__cause__)
    return memory


def _recognised(error: BaseException) -> OutOfMemory | None:
    enforced = r"^\[enforce fail at [^\]]*\] (err == 0\. )?"
    first = re.sub(enforced, "", first_line(error))
    if isinstance(error, MemoryError):
        return OutOfMemory("python", True, first)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return OutOfMemory("python", True, first)
    if not isinstance(error, RuntimeError):
        return None
    text = str(error).lower()
    for kind, pattern, certain in _FORMS:
        if re.search(pattern, text, re.DOTALL):
            return OutOfMemory(kind, certain, first)
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory("device", True, first)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a device or the machine running out of memory."""
    memory = out_of_memory(error)
    return memory is not None and memory.certain
