"""Nothing that a pass does to a model is left behind."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rightbatch.core.guards import ModelState, untouched


class Busy(nn.Module):
    """Changes all that a module may hold, each in the way that is usual for it."""

    later: Any
    inner: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("assigned", torch.zeros(2))
        self.register_buffer("grown", torch.arange(3.0))
        self.register_buffer("made", None)
        self.register_buffer("repeated", torch.ones(1).expand(4))
        self.plain, self.calls, self.queue = torch.zeros(2), 0, deque([1], maxlen=2)
        self.seen: dict[str, int] = {"a": 1}
        self.numbers, self.names = np.zeros(2), {"a"}
        self.torch_numbers = torch.Generator().manual_seed(1)
        self.numpy_numbers = np.random.default_rng(1)
        self.python_numbers = random.Random(1)

    def forward(self, x: Tensor) -> Tensor:
        self.written += 1
        self.assigned = self.assigned + 1
        self.grown, self.made = torch.arange(5.0), x.detach().mean(0)
        self.plain += 1
        self.calls += 1
        self.queue.append(self.calls)
        self.seen["b"] = 2
        self.numbers += 1
        self.names.add("b")
        self.cache = x
        self.head = nn.Linear(2, 2)
        self.torch_numbers.manual_seed(2)
        self.numpy_numbers.random()
        self.python_numbers.random()
        self.train(False)
        return self.inner(x)


def described(model: Busy) -> dict[str, Any]:
    held: dict[str, Any] = {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in (*model.named_buffers(), *vars(model).items())
        if not name.startswith("_") and not isinstance(value, (set, dict, deque))
    }
    del held["torch_numbers"], held["numpy_numbers"], held["python_numbers"]
    held["inside"] = (list(model.queue), dict(model.seen), sorted(model.names))
    held["drawn"] = (
        model.torch_numbers.get_state().tolist(),
        str(model.numpy_numbers.bit_generator.state),
        model.python_numbers.getstate(),
    )
    return held | {"modules": [*model._modules], "made": model.made}


def test_all_that_a_forward_pass_changes_is_put_back() -> None:
    model = Busy()
    before, assigned = described(model), model.assigned
    state = ModelState(model)
    for _ in range(2):
        model(torch.ones(3, 2))
        assert described(model) != before
        state.restore()
        assert described(model) == before
        assert model.assigned is assigned  # the same tensor, for whoever else holds it


def test_it_can_be_taken_again_after_anything() -> None:
    """Each time as one made anew: of other names, tensors, shapes and modules."""
    model = Busy()
    model.later = None
    state = ModelState(model)

    def of_another_shape() -> None:
        model.written.data = torch.full((5,), 7.0)

    def of_another_module() -> None:
        model.inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def of_a_list_for_none() -> None:
        model.later = [1]

    changes: list[Any] = [
        lambda: None,
        lambda: model(torch.ones(3, 2)),
        lambda: model.train() and model(torch.zeros(3, 2)),
        lambda: model.double().float(),
        of_another_shape,
        of_another_module,
        of_a_list_for_none,
    ]
    for change in changes:
        change()
        state.take()
        before, later = described(model), str(model.later)
        for value in (1.0, 2.0):
            model(torch.full((3, 2), value))
            if model.later is not None:
                model.later.append(value)
            state.restore()
            assert (described(model), str(model.later)) == (before, later)


@pytest.mark.filterwarnings("ignore:.*(torch.jit|nested tensors)")
def test_what_no_pass_writes_to_is_left_alone() -> None:
    """Arrays of files and of bytes, nested tensors, modules of TorchScript."""
    traced: Any = torch.jit.trace(nn.Linear(2, 2), torch.ones(3, 2))
    model: Any = nn.Sequential(torch.jit.script(nn.BatchNorm1d(2)), traced)
    model.bytes = np.frombuffer(b"12345678", dtype=np.uint8)
    model.shared = np.broadcast_to(np.ones(1), (4,))
    model.nested = nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    before = {n: b.clone() for n, b in model.named_buffers()}
    state = ModelState(model)
    model(torch.arange(6.0).view(3, 2))
    model.nested = None
    assert any(not b.equal(before[n]) for n, b in model.named_buffers())
    state.restore()
    assert all(b.equal(before[n]) for n, b in model.named_buffers())
    assert model.nested is nested
    assert model.bytes.tobytes() == b"12345678"


def test_every_gradient_is_put_back() -> None:
    """Also of what no optimizer holds, and of what is not in the model."""
    model, head = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
    (model.weight.sum() + head.sum()).backward()
    before = (model.weight.grad, model.bias.grad, head.grad)
    with untouched(model, [head]):
        (model(torch.ones(1, 2)) * head).sum().backward()
    assert model.weight.grad is before[0]
    assert model.bias.grad is before[1]
    assert head.grad is before[2]
    assert torch.equal(head.grad, torch.ones(2))  # pyrefly: ignore


def test_weights_are_put_back_where_asked_for() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    with pytest.raises(KeyError), untouched(model, (), model.parameters()):
        model.weight.data.mul_(2)
        model.bias.data = torch.zeros(5)
        raise KeyError
    assert torch.equal(model.weight, before)
    assert model.bias.shape == (2,)
