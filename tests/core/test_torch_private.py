"""Private parts of torch do what is said of them; its errors are understood."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("CUDA out of memory", "a second argument"),
        *map(
            RuntimeError,
            (
                "CUDA error: out of memory",
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling",
                "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
                "cuFFT error: CUFFT_ALLOC_FAILED",
                "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED",
                "HIP out of memory. Tried to allocate",
                "MPS backend out of memory (MPS allocated: 5 GB)",
                "level_zero: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
                "DefaultCPUAllocator: can't allocate memory",
                "std::bad_alloc",
                "NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'",
                "Triton Error [CUDA]: out of memory",
            ),
        ),
    ],
)
def test_every_form_of_out_of_memory_is_known(error: Exception) -> None:
    memory = out_of_memory(error)
    assert memory is not None
    assert memory.certain
    wrapped = ValueError("the user's own")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped) == memory


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        KeyError("memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert out_of_memory(error) is None


def test_a_suspicion_is_tried_and_told_as_it_came() -> None:
    found = out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"))
    assert found is not None
    assert not found.certain


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
