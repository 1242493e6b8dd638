"""Every step's gradient in a Lightning trainer is that of its whole batch.

Lightning's own ways of changing the accumulation are shown beside it, so that a release
that mends them is noticed.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb
from cases import made_up
from launching import TESTS, torchrun
from rightbatch.integrations.lightning import Callback, job
from rightbatch.schedules import Ramp, Stages
from rightbatch.schedules.scaling import scaling_for

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
LENGTH, MICRO = 128, 4
STEADY = [(0, 8), (40, 12), (96, 20), (200, 4)]  # three changes, none of them aligned
torch.manual_seed(0)
INPUTS = torch.randn(LENGTH, 3, dtype=torch.float64)
TARGETS = torch.randn(LENGTH, 2, dtype=torch.float64)


class Module(pl.LightningModule):
    """Two layers in float64; the loss is the mean over the examples."""

    def __init__(self, schedule: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        layers = nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)
        self.net = nn.Sequential(*layers).double()
        self.schedule, self.adam = schedule, False

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        called: Any = self
        return (called(x) - y).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(*batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        sgd = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.adam:
            sgd = torch.optim.Adam(self.parameters(), lr=0.01)
        if self.schedule is None:
            return sgd
        return {"optimizer": sgd, "lr_scheduler": self.schedule(sgd)}


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(*batch))
        optimizer.step()


class Steps(pl.Callback):
    """Of every step: how many examples, and how its gradient differs from theirs."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.errors: list[float] = []
        self.ratios: list[float] = []
        self.lrs: list[float] = []
        self.batches: list[int] = []
        self.last = 0

    def on_before_optimizer_step(
        self, trainer: Any, module: Any, optimizer: Any
    ) -> None:
        seen = (trainer.fit_loop.total_batch_idx + 1) * MICRO
        rows = torch.arange(self.last, seen) % LENGTH
        parts = list(module.net.parameters())
        with torch.enable_grad():
            loss = module.loss(INPUTS[rows], TARGETS[rows])
            right = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parts)])
        made = torch.cat([p.grad.flatten() for p in parts])
        self.sizes.append(seen - self.last)
        self.errors.append(float((made - right).norm() / right.norm()))
        self.ratios.append(float(made @ right / right.square().sum()))
        self.batches.append(trainer.accumulate_grad_batches * MICRO)
        self.lrs.append(optimizer.param_groups[0]["lr"])
        self.last = seen


def loader(**changes: Any) -> Any:
    given: dict[str, Any] = {"batch_size": MICRO, "drop_last": True} | changes
    return DataLoader(TensorDataset(INPUTS, TARGETS), **given)


def trainer(*callbacks: Any, **changes: Any) -> Any:
    given = {
        "max_epochs": 2,
        "accumulate_grad_batches": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **given | changes)


def linear(steps: int, interval: str = "step") -> Callable[[Any], Any]:
    def made(optimizer: Any) -> Any:
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        return {"scheduler": decay, "interval": interval}

    return made


@pytest.mark.parametrize("clip", [None, 1e9])
def test_every_gradient_is_its_batchs_through_three_changes(clip: float | None) -> None:
    steps, module = Steps(), Module()
    follow = Callback(None, Stages(tuple(STEADY)), rule="none")
    run = trainer(follow, steps, gradient_clip_val=clip)
    run.fit(module, loader())
    assert max(steps.errors) <= 1e-6
    # 12 only from 48 on, where 3 divides the 12 micro-batches; 20 only where 5 divides;
    # epochs end with what is left, 8 of 12 or 20 examples.
    assert sum(steps.sizes) == follow.examples == 2 * LENGTH
    assert {8, 12, 20, 4} <= set(steps.sizes)
    assert steps.sizes[:7] == [8, 8, 8, 8, 8, 8, 12]
    assert steps.sizes[-1] == 4
    assert run.accumulate_grad_batches == 2  # as the user has set it


@pytest.mark.parametrize("adam", [False, True])  # its moments change with the betas
def test_a_resumed_run_is_the_uninterrupted_one(adam: bool, tmp_path: Path) -> None:
    def fit(epochs: int, path: Path | None = None) -> tuple[Module, Steps, Any]:
        steps, module = Steps(), Module(linear(48))
        module.adam = adam
        follow = Callback(True, Stages(tuple(STEADY)), overhead=math.inf)
        run = trainer(follow, steps, max_epochs=epochs)
        steps.last = 0 if path is None else LENGTH
        run.fit(module, loader(), ckpt_path=path, weights_only=False)
        run.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module, steps, follow

    whole, all_steps, follow = fit(3)
    _, first, _ = fit(1)
    resumed, second, again = fit(3, tmp_path / "1.ckpt")
    assert max(first.errors + second.errors) <= 1e-6
    assert first.sizes + second.sizes == all_steps.sizes
    assert first.lrs + second.lrs == pytest.approx(all_steps.lrs, rel=1e-12)
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert again.monitor.counts.steps == follow.monitor.counts.steps
    assert again._saved == {}  # and a next run begins anew
    assert again.examples == 3 * LENGTH


@pytest.mark.slow
def test_two_ranks_make_the_large_batchs_gradient(tmp_path: Path) -> None:
    done = torchrun(TESTS / "lightning_ranks.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["sizes"] == [*[16] * 6, 24, 8, *[24] * 4, 32, *[40] * 2, *[8] * 6]
    assert max(seen["off"]) <= 1e-12  # float64
    assert seen["measured"] == len(seen["sizes"])


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    plain, path = trainer(max_epochs=1), tmp_path / "plain.ckpt"
    plain.fit(Module(), loader())
    plain.save_checkpoint(path)
    run = trainer(Callback(None, Stages(tuple(STEADY))))
    with pytest.raises(rb.SettingError, match="16 steps without this"):
        run.fit(Module(), loader(), ckpt_path=path, weights_only=False)
    run = trainer(Callback(None, Stages(tuple(STEADY))), max_epochs=1)
    run.fit(Module(), loader())
    run.save_checkpoint(path)
    follow = Callback(None, Stages(tuple(STEADY)))
    run = trainer(follow, accumulate_grad_batches=4)
    with pytest.raises(
        rb.SettingError, match=r"another run\W.*\[8\] there, \[16\] here"
    ):
        run.fit(Module(), loader(), ckpt_path=path, weights_only=False)


def test_a_live_batch_waits_for_a_place_where_a_step_may_begin() -> None:
    """Looked at behind 25 steps of one of an epoch's 32: two are possible behind 26."""
    follow = Callback(
        True, rb.schedules.FollowNoise(4, fraction=1e6, most=16), overhead=math.inf
    )
    run = trainer(follow, accumulate_grad_batches=1, max_epochs=4)
    run.fit(Module(), loader())
    assert follow.controller is not None
    first = follow.controller.changes[0]
    assert (first.examples, first.batch_to) == (26 * MICRO, 8)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_decay_by_steps_ends_after_as_many_examples(interval: str) -> None:
    # Today's run: 4 epochs of 16 steps of 8; the ramp makes fewer steps of it.
    steps = Steps()
    module = Module(linear(64 if interval == "step" else 4, interval))
    run = trainer(Callback(None, Ramp(8, 32, 256)), steps, max_epochs=4)
    run.fit(module, loader())
    decay = run.lr_scheduler_configs[0].scheduler
    assert decay.last_epoch == (64 if interval == "step" else 4)
    assert decay.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    assert max(steps.errors) <= 1e-6
    assert len(steps.sizes) < 40
    # SGD: in proportion to the batch that was meant, however much of an epoch is left.
    unit = 8 if interval == "step" else LENGTH
    for number, (batch, lr) in enumerate(zip(steps.batches, steps.lrs, strict=True)):
        left = 1 - sum(steps.sizes[:number]) // unit * unit / (4 * LENGTH)
        assert lr == pytest.approx(0.1 * left * batch / 8, rel=1e-9)
    assert {8, 32} < set(steps.batches)


class AtBatchStart(pl.Callback):
    """As Lightning's accumulation by steps is proposed (its pull request 21583)."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        trainer.accumulate_grad_batches = 2 if trainer.global_step < 2 else 3


class AtBatchEnd(pl.Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.accumulate_grad_batches = 2 if trainer.global_step < 2 else 3


@pytest.mark.parametrize("rival", [AtBatchStart(), AtBatchEnd()])
def test_lightning_alone_is_wrong_where_a_change_is_not_aligned(rival: Any) -> None:
    steps = Steps()
    trainer(steps, rival, max_epochs=1).fit(Module(), loader())
    assert max(steps.errors[:2]) <= 1e-6
    # Two of three micro-batches, each a third; and the old gradient was never cleared.
    assert steps.sizes[2] == 8
    assert steps.errors[2] > 0.3
    assert max(steps.errors[3:-1]) <= 1e-6  # aligned again
    assert (
        steps.sizes[-1] == 8
    )  # of 12: the epoch's end is divided by three all the same
    assert steps.ratios[-1] == pytest.approx(2 / 3)


def plain_noise(clip: float) -> rb.NoiseScale:
    """What a monitor says in a loop that is like Lightning's."""
    module = Module()
    optimizer = module.configure_optimizers()
    monitor = rb.NoiseMonitor(module.net, optimizer, math.inf, population=LENGTH)
    for start in range(0, 2 * LENGTH, MICRO):
        rows = torch.arange(start, start + MICRO) % LENGTH
        optimizer.zero_grad()
        module.loss(INPUTS[rows], TARGETS[rows]).backward()
        nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return monitor.read(window=2 * LENGTH)


@pytest.mark.parametrize("module", [Module(), Manual()])
def test_a_monitor_sees_what_it_sees_in_a_plain_loop(module: Any) -> None:
    manual = isinstance(module, Manual)
    clip = {} if manual else {"gradient_clip_val": 0.1}
    follow = Callback(overhead=math.inf)
    trainer(follow, accumulate_grad_batches=1, **clip).fit(module, loader())
    noise = follow.monitor.read(window=2 * LENGTH)
    plain = plain_noise(math.inf if manual else 0.1)
    assert noise.steps == plain.steps == 2 * LENGTH // MICRO
    assert noise.trace.value == pytest.approx(plain.trace.value, rel=1e-6)
    assert noise.grad_norm_sq.value == pytest.approx(plain.grad_norm_sq.value, rel=1e-6)
    assert "training_step" not in vars(module)
    assert not module.net[0]._forward_hooks


def test_120_steps_at_two_percent_already_say_something(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    follow = Callback()
    run = trainer(
        follow, logger=logger, max_epochs=4, accumulate_grad_batches=1, max_steps=120
    )
    run.fit(Module(), loader())
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert "noise/scale_low" in rows[0].split(",")
    assert run.global_step == 120
    assert follow.monitor.read(window=480).steps >= 4
    assert math.isfinite(run.callback_metrics["noise/trace"])


def test_a_noise_scale_that_is_no_longer_known_keeps_no_old_value() -> None:
    class Forgets(rb.NoiseMonitor):
        def log(self, prefix: str = "noise/") -> dict[str, float]:
            known = {"noise/scale": 9.0} if self.counts.steps < 9 else {}
            return known | {"noise/trace": 1.0}

    module = Module()
    often = {"accumulate_grad_batches": 1, "log_every_n_steps": 4}
    run = trainer(Callback(Forgets(module)), **often)
    run.fit(module, loader())
    assert math.isnan(run.logged_metrics["noise/scale"])
    assert run.logged_metrics["noise/trace"] == 1.0


@pytest.mark.parametrize(
    ("module", "given", "run", "reason"),
    [
        (Manual(), {}, {"accumulate_grad_batches": 1}, "manual optimization"),
        (Module(), {"drop_last": False, "batch_size": 5}, {}, "drop_last=True"),
        (Module(), {}, {"max_steps": 9}, "max_epochs"),
        (Module(), {"batch_size": 16}, {}, "8 cannot be made of 16"),
        (Module(), {"batch_size": 3}, {}, "8 cannot be made of 3"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    module: Any, given: Any, run: Any, reason: str
) -> None:
    follow = Callback(None, Stages(((0, 8), (64, 20))))
    with pytest.raises(rb.SettingError, match=reason):
        trainer(follow, **run).fit(module, loader(**given))


def test_a_plan_is_trained_by_and_another_runs_is_refused(tmp_path: Path) -> None:
    made = rb.decide(made_up(t0=4e-3, t1=1e-3, critical=100)).plan
    scaling = scaling_for("sgd", 8, 24, rule="linear")
    changes = {"today": 8, "batch_size": 24, "scaling": scaling, "lr_factor": 1.1}
    plan = replace(made, optimizer="SGD", lr=0.1 * 3 * 1.1, **changes)
    plan.save(tmp_path / "plan.json")
    steps = Steps()
    trainer(Callback(None, plan=tmp_path / "plan.json"), steps).fit(Module(), loader())
    assert steps.sizes == [24, 24, 24, 24, 24, 8] * 2
    assert steps.lrs == pytest.approx([0.33] * 12)
    assert max(steps.errors) <= 1e-6
    for other in (replace(plan, today=16), replace(plan, lr=0.4)):
        with pytest.raises(
            rb.SettingError, match=r"another batch|optimizer has changed"
        ):
            trainer(Callback(None, plan=other)).fit(Module(), loader())


def test_two_decays_are_refused() -> None:
    decay = rb.schedules.Rate.steps({0: 1.0, 100: 0.5})
    grow = rb.schedules.InsteadOfDecay(8, decay, most=16)
    with pytest.raises(rb.SettingError, match="two learning-rate decays"):
        trainer(Callback(None, grow)).fit(Module(linear(48)), loader())
    follow = Callback(None, grow)
    trainer(follow).fit(Module(), loader())
    assert follow.controller is not None
    assert follow.controller.batch_size == 16


def test_a_rival_callback_is_refused() -> None:
    rival = pl.callbacks.GradientAccumulationScheduler({1: 2})
    with pytest.raises(rb.SettingError, match="GradientAccumulationScheduler sets"):
        trainer(
            Callback(None, "ramp:8:32:1epochs"), rival, accumulate_grad_batches=1
        ).fit(Module(), loader())


def test_findings_end_the_run_before_it_begins() -> None:
    class Sum(Module):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return super().loss(x, y) * len(x)

    code = next(f.code for f in rb.check(job(Sum(), loader())).items)
    run = trainer(Callback(None, raise_on=(code,)))
    with pytest.raises(rb.JobError, match=code):
        run.fit(Sum(), loader())
    assert run.global_step == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_other_spelling_works_too() -> None:
    import pytorch_lightning as other

    class Theirs(other.LightningModule):
        loss, forward = Module.loss, Module.forward
        training_step: Any = Module.training_step
        configure_optimizers = Module.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.net, self.schedule, self.adam = Module().net, None, False

    steps: Any = Steps()
    follow: Any = Callback(True, Stages(tuple(STEADY)), overhead=math.inf)
    run = other.Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[follow, steps],
    )
    run.fit(Theirs(), loader())
    assert max(steps.errors) <= 1e-6
    assert len(set(steps.sizes)) >= 4
    assert follow.monitor.counts.measured > 10
