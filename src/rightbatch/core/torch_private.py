"""What torch and numpy do not promise to keep: private functions and error texts."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from torch.utils._pytree import tree_iter as tree_iter
from torch.utils._pytree import tree_map as tree_map

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
    """What ran out of memory, or None if the exception is something else.

    Also sees it behind an exception that was raised ``from`` it.

    Example:
        >>> out_of_memory(RuntimeError("MPS backend out of memory (allocated …)")).kind
        'mps'
        >>> out_of_memory(ValueError("out of memory is a nice title")) is None
        True
    """
    seen: BaseException | None = error
    while seen is not None:
        found = _one(seen)
        if found is not None:
            return found
        seen = seen.__cause__
    return None


def _one(error: BaseException) -> OutOfMemory | None:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    first = re.sub(r"^\[enforce fail at [^\]]*\] (err == 0\. )?", "", first)
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
    if (
        type(error).__name__ == "OutOfMemoryError"
    ):  # torch's, which is not imported here
        return OutOfMemory("device", True, first)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a device or the machine running out of memory."""
    found = out_of_memory(error)
    return found is not None and found.certain
