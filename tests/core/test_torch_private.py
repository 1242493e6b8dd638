"""Private parts of torch do what is said of them; its errors are understood."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import rightbatch as rb
from rightbatch.core.torch_private import (
    FakeTensorMode,
    allocations,
    as_no_view,
    in_backward_pass,
    is_compiled,
    is_lost_connection,
    looks_into_tensors,
    no_room_for_threads,
    out_of_memory,
    saved_tensor_hook,
    storage_id,
    without_override_check,
    without_torch_function,
)

NCCL = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, unhandled cuda "
    "error (run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
)
ENFORCE = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: "
WORKER = "DataLoader worker (pid 46794) is killed by signal: "
# As they stand in public reports, cut to their first lines.
MEMORY = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/THCStorage.cu:66",
    "CUDA driver error: out of memory",
    "CUDA driver API error: CUDA_ERROR_OUT_OF_MEMORY (2)",
    "cudaErrorMemoryAllocation: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cublas runtime error : resource allocation failed at THCGeneral.cpp:250",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`",
    "CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling cusparseSpMM",
    "CURAND error: CURAND_STATUS_ALLOCATION_FAILED",
    "HIP out of memory. Tried to allocate 124.00 MiB. GPU 0 has a total capacity of",
    "HIP error: hipErrorOutOfMemory",
    "HIP error: hipErrorMemoryAllocation",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "miopenStatusAllocFailed",
    "MIOpen Error: handlehip.cpp:70: Memory not available to allocate buffer: 655360",
    "MPS backend out of memory (MPS allocated: 9.06 GB, other allocations: 1 GB)",
    "Invalid buffer size: 8.21 GB",
    "Invalid buffer size: 19.38 GiB",
    "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    "XPU out of memory. Tried to allocate 1.00 GiB (GPU 0; 15.56 GiB total capacity)",
    "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "level_zero backend failed with error: 38 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)",
    "Native API returns: -4 (PI_ERROR_MEM_OBJECT_ALLOCATION_FAILURE)",
    "NPU out of memory. Tried to allocate 24.00 MiB (NPU 0; 60.97 GiB total capacity)",
    NCCL + "Cuda failure 2 'out of memory'",
    NCCL + "Failed to CUDA calloc 6291456 bytes",
    NCCL + "Failed to CUDA calloc async 608 bytes",
    NCCL + "Failed to CUDA host alloc 4194304 bytes",
    ENFORCE + "can't allocate memory: you tried to allocate 4000 bytes. Error code 12",
    "[enforce fail at ..\\c10\\core\\CPUAllocator.cpp:76] data. DefaultCPUAllocator: "
    "not enough memory: you tried to allocate 23592960 bytes.",
    "unable to mmap 29764 bytes from file </torch_1_2_3>: Cannot allocate memory (12)",
    "std::bad_alloc",
    "Triton Error [CUDA]: out of memory",
    "Error out of memory at line 380 in file /bitsandbytes/csrc/pythonInterface.c",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes.",
    "Caught OutOfMemoryError in replica 0 on device 0.\nOriginal Traceback",
    "Caught _ArrayMemoryError in DataLoader worker process 0.\nOriginal Traceback\n"
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1.61 GiB for an "
    "array with shape (753, 536, 536) and data type float64",
    "Caught RuntimeError in DataLoader worker process 1.\nOriginal Traceback\n"
    "RuntimeError: CUDA error: out of memory",
]
PERHAPS = [
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_NOT_INITIALIZED when calling `hipblasCreate(handle)`",
    "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate`",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "FIND was unable to find an engine to execute this computation",
    "GET was unable to find an engine to execute this computation",
    "Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)",
    "UR backend failed. UR backend returns:40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)",
    "could not create a memory object",
    "could not create a primitive",
    "could not execute a primitive",
    WORKER + "Bus error. It is possible that dataloader's workers are out of shared "
    "memory. Please try to raise your shared memory limit.",
    WORKER + "Killed. ",
    "unable to write to file </torch_31911_952_6686>: No space left on device (28)",
    "unable to allocate shared memory(shm) for file </torch_7_3>: Success (0)",
    NCCL + "Error while creating shared memory segment /dev/shm/nccl-KWf (size 596)",
]
OTHERS = [
    "mat1 and mat2 shapes cannot be multiplied",
    "CUDA error: device-side assert triggered",
    "CUDA error: an illegal memory access was encountered",
    NCCL + "Cuda failure 700 'an illegal memory access was encountered'",
    "NCCL error: unhandled cuda error, Cuda failure 'an illegal memory access was "
    "encountered'",
    NCCL + "Cuda failure 1 'invalid argument'",
    "CUDA error: too many resources requested for launch",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "out of resource: shared memory, Required: 131072, Hardware limit: 101376. "
    "Reducing block sizes or `num_stages` may help.",
    "Failed to import transformers.models.bert: /usr/lib/aarch64-linux-gnu/libgomp.so.1"
    ": cannot allocate memory in static TLS block",
    "unable to open shared memory object </torch_1_2> in read-write mode: Too many "
    "open files (24)",
    "[enforce fail at inline_container.cc:603] . unexpected pos 2228 vs 2227",
    "unsupported operation: more than one element of the written-to tensor refers to a "
    "single memory location",
    "No available kernel. Memory efficient kernel not used because",
    "DataLoader worker (pid(s) 3216) exited unexpectedly",
]


@pytest.mark.parametrize("text", MEMORY)
def test_every_text_of_out_of_memory_is_known(text: str) -> None:
    memory = out_of_memory(RuntimeError(text))
    assert memory is not None
    assert memory.certain


@pytest.mark.parametrize("text", PERHAPS)
def test_a_suspicion_is_tried_and_told_as_it_came(text: str) -> None:
    memory = out_of_memory(RuntimeError(text))
    assert memory is not None
    assert not memory.certain


@pytest.mark.parametrize("text", OTHERS)
def test_what_only_sounds_like_memory_is_something_else(text: str) -> None:
    assert out_of_memory(RuntimeError(text)) is None


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory", "a second argument"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError("Caught OSError in worker 0.\n[Errno 12] Cannot allocate"), True),
        (OSError("[WinError 1455] The paging file is too small"), True),
        (OSError(2, "No such file or directory", "out of memory.txt"), False),
        (OSError("libgomp.so.1: cannot allocate memory in static TLS block"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("out of memory"), False),
        (KeyError("memory"), False),
    ],
)
def test_the_kind_of_an_error_counts(error: Exception, is_memory: bool) -> None:
    memory = out_of_memory(error)
    assert (memory is not None and memory.certain) is is_memory
    assert is_memory or memory is None


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_memory_is_seen_behind_its_consequences() -> None:
    one, two = ValueError("the user's own"), RuntimeError("a library's")
    one.__cause__, two.__cause__ = two, NO_MEMORY
    found = out_of_memory(one)
    assert found is not None
    assert found.certain
    assert found.text.startswith("CUDA out of memory")
    two.__cause__ = one  # a circle
    assert out_of_memory(one) is None
    last: BaseException = NO_MEMORY
    for _ in range(5000):
        outer = ValueError("again")
        outer.__cause__, last = last, outer
    assert out_of_memory(last) == found


def test_what_happened_while_memory_was_handled_is_not_certain() -> None:
    later = AttributeError("no attribute 'empty_cach'")
    later.__context__ = NO_MEMORY
    found = out_of_memory(later)
    assert found is not None
    assert not found.certain
    later.__suppress_context__ = True  # raise ... from None
    assert out_of_memory(later) is None


def test_a_group_is_memory_where_all_of_it_is() -> None:
    both = ExceptionGroup("of two ranks", [NO_MEMORY, MemoryError()])
    mixed = ExceptionGroup("of two ranks", [ValueError("no"), both])
    other = ExceptionGroup("out of memory", [ValueError("no"), KeyError("a")])
    wrapped = rb.JobError("the loss raised ExceptionGroup")
    wrapped.__cause__ = both
    told = [out_of_memory(error) for error in (both, wrapped, mixed, other)]
    assert [None if m is None else m.certain for m in told] == [True, True, False, None]


def test_errors_of_tracing_and_of_other_processes_are_known() -> None:
    with FakeTensorMode(), pytest.raises(Exception) as traced:  # ruff: ignore[pytest-raises-too-broad]
        float(torch.ones(()) * 2)
    assert looks_into_tensors(f"{type(traced.value).__name__}: {traced.value}")
    assert is_lost_connection(RuntimeError("Connection closed by peer [127.0.0.1]"))
    assert no_room_for_threads("Resource temporarily unavailable")


def test_a_tensor_that_is_no_view_shares_its_storage() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    view = (2 * x).view(6)
    same = as_no_view(view)
    assert storage_id(same) == storage_id(view) != storage_id(x)
    same.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((2, 3), 2.0))


def test_where_code_runs_is_known() -> None:
    inside = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: inside.append(in_backward_pass()))
    x.sum().backward()
    assert inside == [True]
    assert not in_backward_pass()
    assert saved_tensor_hook() is None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert saved_tensor_hook() is not None


def test_a_function_without_its_override_check() -> None:
    calls = []

    class Seen(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            calls.append(func)
            return func(*args, **(kwargs or {}))

    body = without_override_check(torch.einsum)
    assert body is not None
    x = torch.ones(2)
    with Seen():
        assert float(body("i,i->", x, x)) == 2
        assert torch.einsum not in calls
        assert calls  # what it is made of is seen
        calls.clear()
        with without_torch_function():
            torch.einsum("i,i->", x, x)
        assert not calls
    assert without_override_check(len) is None


def test_allocations_come_and_go() -> None:
    with torch.profiler.profile(profile_memory=True) as profiler:
        x = torch.ones(1000)
        del x
    changes = allocations(profiler)
    assert 4000 in changes
    assert sum(changes) == 0


def test_compiled_parts_of_a_model_are_seen() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    assert not is_compiled(model)
    model.append(torch.compile(nn.Linear(1, 1), backend="eager"))  # pyrefly: ignore
    assert is_compiled(model)
