"""The examples with Lightning run as they stand, and Fabric's loop is exact."""

import runpy
from pathlib import Path

import pytest
import torch
from lightning import Fabric
from torch import nn

import rightbatch as rb
from rightbatch.schedules import Stages

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "said", "last"),
    [
        ("lightning_module.py", "batch 32 -> 48, lr 0.075: ", "val_loss 0."),
        ("fabric_loop.py", "batch 32 -> ", "17970 examples in "),
    ],
)
def test_an_example_runs(
    name: str,
    said: str,
    last: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = EXAMPLES / name
    assert len(path.read_text().splitlines()) < 60
    runpy.run_path(str(path), run_name="__main__")
    output = capsys.readouterr().out
    assert said in output
    assert "noise scale" in output
    assert output.splitlines()[-1].startswith(last)


def test_fabrics_loop_makes_the_gradient_of_every_batch() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(96, 3).double(), torch.randn(96, 2).double()
    net = nn.Linear(3, 2).double()
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    stages = Stages(((0, 8), (40, 20), (100, 12), (130, 7)))
    stream = rb.BatchStream((x, y), 8, seed=0, micro_batch=4)
    controller = rb.Controller(stages, optimizer.optimizer, 8, stream=stream)
    sizes, seen = [], 0
    while stream.epoch < 2:
        for step in stream.steps():
            rows = []
            for number, micro in enumerate(step, start=1):
                rows += [int(i) for i in micro.indices]
                with fabric.no_backward_sync(model, enabled=number < len(step)):
                    loss = (model(micro.data[0]) - micro.data[1]).square().mean()
                    fabric.backward(loss * micro.share)
            right = torch.autograd.grad(
                (net(x[rows]) - y[rows]).square().mean(), [net.weight]
            )
            assert net.weight.grad is not None
            error = (net.weight.grad - right[0]).norm() / right[0].norm()
            assert error <= 1e-6
            optimizer.step()
            optimizer.zero_grad()
            seen += step.examples
            sizes.append(step.examples)
            controller(seen)
    assert {8, 20, 12, 7} <= set(sizes)
