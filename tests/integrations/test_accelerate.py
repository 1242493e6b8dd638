"""Accelerate alone divides by the wrong number at a change of batch; ours does not."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb
from accelerate_loop import STAGES, Loop
from cases import made_up
from launching import TESTS, torchrun
from rightbatch.integrations.accelerate import follow

DECAY = rb.schedules.Rate.steps({0: 1.0, 100: 0.5})
GROW = rb.schedules.InsteadOfDecay(8, DECAY, most=16)
EXAMPLE = TESTS.parent / "examples" / "accelerate_loop.py"


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Any:
    """Accelerate keeps its state for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def gradients(change_at: int, accumulation: int, ours: bool) -> list[float]:
    """Of steps whose every micro-batch has gradient 1; first 2 are accumulated.

    An epoch of 7 micro-batches of 4 examples.
    """
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = nn.Linear(1, 1, bias=False)
    sgd = torch.optim.SGD(net.parameters(), lr=0.0)
    rows: Any = torch.ones(28, 1)
    loader = DataLoader(rows, batch_size=4, drop_last=True)
    net, sgd, loader = accelerator.prepare(net, sgd, loader)
    stages = rb.schedules.Stages(((0, 8), (4 * change_at, 4 * accumulation)))
    batches = follow(accelerator, sgd, stages, loader=loader, rule="none")
    seen = []
    for count, x in enumerate(loader, 1):
        with accelerator.accumulate(net):
            accelerator.backward(net(x).mean())
            if accelerator.sync_gradients:
                seen.append(float(net.weight.grad))
            sgd.step()
            if ours:
                batches.step()
            elif count == change_at:
                accelerator.gradient_accumulation_steps = accumulation
            sgd.zero_grad()
    return seen


def test_accelerate_alone_is_wrong_and_ours_is_not() -> None:
    """2 -> 4 behind 2 of 7: alone, a step of 2 with gradient 0.5; then the rest."""
    assert gradients(2, 4, ours=False) == [1.0, 0.5, 0.75]
    assert gradients(2, 4, ours=True) == [1.0, 1.0, 1.0]
    assert gradients(4, 3, ours=False) == pytest.approx([1.0, 1.0, 2 / 3, 1 / 3])
    assert gradients(4, 3, ours=True) == [1.0, 1.0, 1.0]


def whole_run(**options: Any) -> Loop:
    loop = Loop(8, **options)
    for _ in range(3):
        loop.epoch()
    return loop


def test_every_step_is_the_large_batch_through_changes_and_a_resume(
    tmp_path: Path,
) -> None:
    """Three changes of batch in three epochs; saved in the middle of the second."""
    whole = whole_run()
    sizes = [step["batch"] for step in whole.steps]
    assert [b for b, a in zip(sizes, [0, *sizes], strict=False) if b != a] == [
        *(8, 24, 16, 24, 16, 24, 40, 8)  # and what was left at the ends of epochs
    ]
    assert max(step["error"] for step in whole.steps) <= 1e-12  # float64
    # 0.02 at batch 8, in proportion; halved every 160 examples.
    seen = 0
    for step in whole.steps:
        stage = STAGES.batch_size(seen)
        assert step["lr"] == pytest.approx(0.02 * stage / 8 * 0.5 ** (seen // 160))
        seen += step["batch"]
    first = Loop(8)
    first.epoch()
    first.epoch(until=300)
    first.accelerator.save_state(str(tmp_path))
    _reset()
    second = Loop(8)
    second.accelerator.load_state(str(tmp_path))
    second.epoch()
    second.epoch()
    assert first.steps + second.steps == whole.steps
    assert second.weights() == whole.weights()


def test_a_state_of_other_steps_is_refused(tmp_path: Path) -> None:
    """As on another number of ranks, where Accelerate's scheduler makes other steps."""
    first = Loop(8)
    first.epoch(until=100)
    first.accelerator.save_state(str(tmp_path))
    _reset()
    second = Loop(8)
    second.batches._schedulers[0].reference = 4
    with pytest.raises(
        rb.SettingError, match=r"another run\W.*\[8, 8\] there, \[8, 4\]"
    ):
        second.accelerator.load_state(str(tmp_path))


def test_a_batch_is_never_larger_than_an_epoch() -> None:
    loop = whole_run(schedule="stages:0=8,100=800")
    assert loop.batches.batch_size == 208
    assert loop.steps[-1]["lr"] == pytest.approx(0.02 * 208 / 8 * 0.5 ** (416 // 160))


def _reset() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.slow
def test_two_ranks_make_the_same_steps(tmp_path: Path) -> None:
    done = torchrun(TESTS / "accelerate_loop.py", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    ranks = [json.loads((tmp_path / f"rank-{r}.json").read_text()) for r in (0, 1)]
    alone = whole_run()
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["weights"] == pytest.approx(alone.weights(), rel=1e-9)
    for ours, other in zip(alone.steps, ranks[0]["steps"], strict=True):
        assert other["error"] <= 1e-12
        assert (other["batch"], other["lr"]) == pytest.approx(
            (ours["batch"], ours["lr"])
        )
    assert ranks[0]["log"]["noise/scale"] > 0


def test_noise_is_logged_and_followed() -> None:
    """Every step measured; the noise scale is about 15 (9 to 34), the first batch 8."""
    follows = rb.schedules.FollowNoise(8, fraction=4, most=64)
    loop = whole_run(schedule=follows, monitor=True)
    log = loop.batches.log()
    assert log["noise/scale_low"] <= log["noise/scale"]
    assert log["batch/size"] == loop.batches.batch_size
    assert log["batch/examples"] == 3 * 208
    changes = loop.batches.controller.changes
    assert changes[0].batch_to == 16  # looked at behind 25 steps, twice at most
    assert {change.batch_to % 8 for change in changes} == {0}
    assert max(step["error"] for step in loop.steps) <= 1e-12


def test_a_plan_gives_batch_and_rate(tmp_path: Path) -> None:
    plan = rb.decide(made_up(today=8, critical=16)).plan
    loop = Loop(8, plan=plan, schedule=None, lr=0.1)
    assert loop.batches.batch_size == plan.batch_size
    assert loop.sgd.param_groups[0]["lr"] == pytest.approx(plan.lr)
    plan.save(tmp_path / "plan.json")
    _reset()
    assert (
        Loop(8, plan=tmp_path / "plan.json", lr=0.1).batches.batch_size == 8
    )  # the stages'


def a_job() -> rb.Job:
    x = torch.ones(64, 1)
    return rb.Job(
        model=lambda: nn.Linear(1, 1),
        data=(x, x),
        loss=lambda net, batch: (net(batch[0]) - batch[1]).square().sum(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        batch_size=8,
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"schedule": rb.schedules.Constant(12)}, "12 cannot be made of 8"),
        ({"schedule": rb.schedules.Ramp(8, 4, 99)}, "batch of 4 cannot be made"),
        ({"schedule": rb.schedules.FollowNoise(8, fraction=0.5)}, "needs a monitor"),
        ({"raise_on": ("RB1",)}, "needs a job"),
        ({"schedule": GROW}, "two learning-rate decays"),
    ],
)
def test_what_cannot_be_followed_is_refused(options: Any, match: str) -> None:
    with pytest.raises(rb.SettingError, match=match):
        Loop(8, **options)


def test_a_check_that_finds_something_is_raised() -> None:
    with pytest.raises(rb.JobError, match=r"^RB1"):
        Loop(8, job=a_job(), raise_on=("RB1",))


def test_loaders_that_hide_a_part_are_refused() -> None:
    accelerator = Accelerator(cpu=True)
    net = nn.Linear(1, 1)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    rows = TensorDataset(torch.ones(30, 1))
    short, plain = DataLoader(rows, batch_size=8), DataLoader(rows, batch_size=5)
    with pytest.raises(rb.SettingError, match="last micro-batch"):
        follow(accelerator, sgd, loader=accelerator.prepare(short))
    with pytest.raises(rb.SettingError, match="does not say its batch"):
        follow(accelerator, sgd, loader=plain)
    with pytest.raises(rb.SettingError, match="no Accelerator"):
        follow(sgd, sgd, loader=plain)


def test_a_loop_that_steps_otherwise_is_told() -> None:
    loop = Loop(8)
    loop.sgd.step()  # else torch warns
    loop.batches._schedulers[0].scheduler.step()
    with pytest.raises(rb.SettingError, match="stepped elsewhere"):
        loop.epoch()
    _reset()
    loop = Loop(8)
    loop.batches.micro_batches_in_epoch = 3  # and nothing is skipped
    with pytest.raises(rb.SettingError, match="other micro-batches"):
        for x, _ in loop.loader:
            with loop.accelerator.accumulate(loop.net):
                loop.accelerator.backward(loop.net(x).mean())
                loop.sgd.step()
                loop.batches.step()


def test_a_half_made_step_is_not_saved(tmp_path: Path) -> None:
    loop = Loop(8, schedule=rb.schedules.Constant(16))
    x, _ = next(iter(loop.loader))
    with loop.accelerator.accumulate(loop.net):
        loop.accelerator.backward(loop.net(x).mean())
    with pytest.raises(rb.SettingError, match="between the micro-batches"):
        loop.accelerator.save_state(str(tmp_path))


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    assert "batch 16 -> 32" in said
    assert "noise/scale" in said
    assert len(EXAMPLE.read_text().splitlines()) < 60
