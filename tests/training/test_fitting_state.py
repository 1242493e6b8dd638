"""Saved states under a job's own names: wrappers, ties, and clear refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.training.fitting_state import fitting_model, fitting_optimizer

PATH = Path("a.pt")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Embedding(7, 3)  # a name like a wrapper's
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.model.weight
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.head(self.model(x)))


@pytest.mark.parametrize(
    "wrapper",
    ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model.model."],
)
def test_wrappers_are_taken_off(wrapper: str) -> None:
    model = Tied()
    saved = {wrapper + name: value for name, value in model.state_dict().items()}
    found = fitting_model(Tied(), saved, PATH)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())


def test_what_lies_beside_a_wrapped_model_is_left() -> None:
    saved: dict[str, Any] = {f"model.{k}": v for k, v in Tied().state_dict().items()}
    saved["criterion.weight"] = torch.ones(7)
    assert len(fitting_model(Tied(), saved, PATH)) == 7


def test_parts_that_are_compiled_here_or_there() -> None:
    part = {"0._orig_mod.weight": torch.ones(2, 3), "0.bias": torch.ones(2)}
    plain = nn.Sequential(nn.Linear(3, 2))
    assert set(fitting_model(plain, part, PATH)) == {"0.weight", "0.bias"}
    compiled = nn.Sequential()
    compiled.add_module("_orig_mod", nn.Linear(3, 2))
    found = fitting_model(compiled, nn.Linear(3, 2).state_dict(), PATH)
    assert set(found) == {"_orig_mod.weight", "_orig_mod.bias"}


def test_a_tied_parameter_may_be_saved_once() -> None:
    for left in ("head.weight", "model.weight"):
        saved = Tied().state_dict()
        weight = saved.pop(left)
        found = fitting_model(Tied(), saved, PATH)
        assert torch.equal(found[left], weight)


def test_another_model_is_refused_by_its_first_names() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1))
    saved = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1)).state_dict()
    with pytest.raises(rb.SettingError, match="the model in a") as shapes:
        fitting_model(model, {f"module.{k}": v for k, v in saved.items()}, PATH)
    assert shapes.value.seen == (
        "0.weight has shape (3, 5), (4, 5) in the model; "
        "0.bias has shape (3,), (4,) in the model; "
        "1.weight has shape (1, 3), (1, 4) in the model"
    )
    saved = nn.Sequential(nn.Linear(5, 4)).state_dict()
    with pytest.raises(rb.SettingError, match="not the job's") as missing:
        fitting_model(model, saved, PATH)
    assert missing.value.seen == "1.weight is missing; 1.bias is missing"
    saved = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9))).state_dict()
    with pytest.raises(rb.SettingError, match="not the job's") as more:
        fitting_model(nn.Sequential(nn.Linear(4, 4)), saved, PATH)
    assert more.value.seen.startswith("1.weight is not in the model; 1.bias is not")
    assert more.value.seen.endswith(", and 13 more")


def adam(model: nn.Module, lr: float = 0.1, **more: Any) -> torch.optim.Adam:
    """After one step."""
    optimizer = torch.optim.Adam(model.parameters(), lr, **more)
    for p in model.parameters():
        p.grad = torch.full_like(p, float(p.numel()))
    optimizer.step()
    return optimizer


def test_moments_and_numbers_are_the_saved_and_computing_is_ours() -> None:
    model, other = nn.Linear(5, 1), nn.Linear(5, 1)
    saved = adam(model, lr=0.3, betas=(0.8, 0.9), fused=True).state_dict()
    own = torch.optim.Adam(other.parameters(), lr=0.1, foreach=False)
    fitting = fitting_optimizer(own, other, saved, PATH)
    own.load_state_dict(fitting)
    group = own.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.3, (0.8, 0.9))
    assert (group["fused"], group["foreach"]) == (None, False)
    moment = own.state[other.weight]["exp_avg"]
    assert torch.allclose(moment, torch.full((1, 5), 0.2 * 5.0))


def test_parameters_that_are_saved_by_name() -> None:
    model, other = nn.Linear(5, 1), nn.Linear(5, 1)
    saved = adam(model).state_dict()
    names = ["weight", "bias"]
    by_name = {
        "state": {names[i]: moments for i, moments in saved["state"].items()},
        # Another order than the job's
        "param_groups": [{**saved["param_groups"][0], "params": ["bias", "weight"]}],
    }
    own = torch.optim.Adam(other.parameters(), lr=0.1)
    own.load_state_dict(fitting_optimizer(own, other, by_name, PATH))
    assert own.state[other.bias]["exp_avg"].shape == (1,)
    assert own.state[other.weight]["exp_avg"].shape == (1, 5)


def test_another_optimizer_is_refused() -> None:
    model = nn.Linear(5, 1)
    saved = adam(nn.Linear(5, 1)).state_dict()

    def refused(optimizer: Any, state: Any) -> str:
        with pytest.raises(rb.SettingError, match="the optimizer in a") as caught:
            fitting_optimizer(optimizer, model, state, PATH)
        return caught.value.seen

    parameters = list(model.parameters())
    grouped = torch.optim.Adam([{"params": [p]} for p in parameters])
    assert refused(grouped, saved) == (
        "parameters by group: [2] there, [1, 1] in the job"
    )
    sgd = torch.optim.SGD(parameters, lr=0.1)
    assert refused(sgd, saved) == "no momentum, which the job's SGD has"
    own = torch.optim.Adam(parameters)
    wide = adam(nn.Linear(3, 1)).state_dict()
    seen = "exp_avg of parameter 0 has shape (1, 3), (1, 5) in the job"
    assert refused(own, wide) == seen
    assert "without state" in refused(own, {"lr": 0.1})
    assert "without state" in refused(own, [saved])
    other = {**saved, "state": {"x.weight": saved["state"][0]}}
    other["param_groups"] = [{**saved["param_groups"][0], "params": ["x.a", "x.b"]}]
    assert refused(own, other) == "moments of ['x.weight'], none of the job's"
