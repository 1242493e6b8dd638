"""A LightningModule as a job: loss, optimizer, rate, evaluation as in a trainer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import pytorch as pl
from torch import Tensor, nn
from torch.utils import data as torch_data

import rightbatch as rb
from rightbatch.cli.main import cli
from rightbatch.integrations.lightning import job
from rightbatch.schedules.job_rate import rate_of

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
torch.manual_seed(0)
X, Y = torch.randn(96, 3), torch.randn(96, 2)
HELD_X, HELD_Y = torch.randn(10, 3), torch.randn(10, 2)


class Module(pl.LightningModule):
    def __init__(self, interval: str = "", frequency: int = 1) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.interval, self.frequency = interval, frequency

    def training_step(self, batch: Any) -> dict[str, Tensor]:
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        self.log_dict({"train_loss": loss})
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        difference = self.net(batch[0]) - batch[1]
        self.log("val_loss", difference.square().mean(), prog_bar=True)
        self.log("val_size", difference.abs().mean())

    def configure_optimizers(self) -> Any:
        decayed, rest = [self.net.weight], [self.net.bias]
        sgd = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.5}, {"params": rest}], lr=0.1
        )
        if not self.interval:
            return sgd
        if self.interval == "planned":
            steps = int(self.trainer.estimated_stepping_batches)
            once = torch.optim.lr_scheduler.OneCycleLR(
                sgd, 0.1, steps, cycle_momentum=False
            )
            return [sgd], [{"scheduler": once, "interval": "step"}]
        decay = torch.optim.lr_scheduler.LinearLR(sgd, 0.5, 1.0, 4)
        told = {"interval": self.interval, "frequency": self.frequency}
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": decay} | told}

    def train_dataloader(self) -> Any:
        made = torch_data.TensorDataset(X, Y)
        return torch_data.DataLoader(made, batch_size=8, shuffle=True)

    def val_dataloader(self) -> Any:
        made = torch_data.TensorDataset(HELD_X, HELD_Y)
        return torch_data.DataLoader(made, batch_size=4)  # 4, 4, 2: not a mean of means


def trainer(**given: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    return pl.Trainer(**quiet | given)


def test_loss_optimizer_and_evaluation_are_the_modules() -> None:
    module = Module()
    made = job(module)
    model = made.make_model()
    loss, count = made.mean_loss(model, (X[:8], Y[:8]))
    right = (module.net(X[:8]) - Y[:8]).square().mean()
    assert count is None
    assert torch.equal(loss, right)
    optimizer = made.make_optimizer(model)
    groups = optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.5, 0.01]
    assert {id(p) for g in groups for p in g["params"]} == set(
        map(id, model.parameters())
    )
    held = (module.net(HELD_X) - HELD_Y).detach()
    assert made.evaluated(model) == pytest.approx(float(held.square().mean()))
    other = job(module, monitor="val_size")
    assert other.evaluated(model) == pytest.approx(float(held.abs().mean()))
    assert (made.batch_size, made.length, made.rate) == (8, 96, None)
    assert "log" not in vars(module)  # it stays as it is
    with pytest.raises(rb.JobError, match="logs no 'nothing'"):
        job(module, monitor="nothing").evaluated(model)


def test_a_trainer_gives_batch_length_clipping_and_precision() -> None:
    given = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5, "max_epochs": 4}
    made = job(Module(), trainer=trainer(**given, precision="bf16-mixed"))
    assert (made.batch_size, made.clip_norm) == (24, 0.5)
    assert (made.examples, made.precision) == (4 * 96, "bfloat16")
    assert job(Module(), trainer=trainer(max_steps=5)).examples == 40


@pytest.mark.parametrize(
    ("interval", "frequency", "split", "every"),
    # An epoch has 12 batches. A frequency counts batches, and is looked at after steps.
    [("step", 1, 1, 8), ("step", 3, 2, 48), ("step", 1, 2, 16), ("epoch", 2, 1, 192)],
)
def test_a_scheduler_is_the_jobs_rate_by_examples(
    interval: str, frequency: int, split: int, every: int
) -> None:
    given = {"accumulate_grad_batches": split, "max_epochs": 12}
    made = job(Module(interval, frequency), trainer=trainer(**given))
    assert made.make_optimizer(made.make_model()).param_groups[0]["lr"] == 0.1
    rate = rate_of(made)
    assert rate is not None
    for steps in range(4):
        assert rate(steps * every) == pytest.approx(0.5 + 0.125 * steps)
    assert rate(10 * every) == pytest.approx(1.0)


def test_the_length_of_the_run_is_what_a_scheduler_may_ask_for() -> None:
    rate = rate_of(job(Module("planned"), epochs=5))
    assert rate is not None
    assert rate(0.3 * 5 * 96) == pytest.approx(
        25.0, rel=0.01
    )  # over its start, max / 25
    with pytest.raises(rb.JobError, match="not attached to a `Trainer`"):
        job(Module("planned"))
    with pytest.raises(rb.SettingError, match="needs the length of today's run"):
        job(Module("step"))


class Several(Module):
    def configure_optimizers(self) -> Any:
        halves = [self.net.weight], [self.net.bias]
        return [torch.optim.SGD(half, lr=0.1) for half in halves]


class WarmedUp(Module):
    def optimizer_step(self, epoch: int, batch_idx: int, *rest: Any) -> None:
        super().optimizer_step(epoch, batch_idx, *rest)


class Stream(torch_data.IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(X)


def test_what_is_no_job_is_refused_with_the_reason() -> None:
    manual = Module()
    manual.automatic_optimization = False
    with pytest.raises(rb.JobError, match="manual optimization"):
        job(manual)
    with pytest.raises(rb.JobError, match="one optimizer"):
        job(Several())
    with pytest.raises(rb.JobError, match="of its own in optimizer_step"):
        job(WarmedUp())
    with pytest.raises(rb.JobError, match="no numbered examples"):
        job(Module(), torch_data.DataLoader(Stream()))
    with pytest.raises(rb.JobError, match="no DataLoader but a list"):
        job(
            Module(),
            type(
                "Data",
                (pl.LightningDataModule,),
                {"train_dataloader": lambda self: [1, 2]},
            )(),
        )
    weighted = torch_data.WeightedRandomSampler([1.0] * 96, 96)
    rows = torch_data.TensorDataset(X, Y)
    with pytest.raises(rb.JobError, match="WeightedRandomSampler"):
        job(Module(), torch_data.DataLoader(rows, batch_size=8, sampler=weighted))
    for given, reason in (
        ({"precision": "64-true"}, "'64-true'"),
        ({"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, "by norm"),
    ):
        with pytest.raises(rb.SettingError, match=reason):
            job(Module(), trainer=trainer(**given))


def test_a_trained_job_is_a_trained_module() -> None:
    made = replace(job(Module()), seed=3)
    run = rb.train(made, examples=960)
    before, after = made.evaluated(made.make_model()), made.evaluated(run.model)
    assert after < 0.9 * before


MODULE = """
import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits
from torch.nn import Linear, functional as F
from torch.utils.data import DataLoader, TensorDataset

digits = load_digits()
x, y = torch.tensor(digits.data).float() / 16, torch.tensor(digits.target)
rows = TensorDataset(x, y)


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = Linear(64, 10)

    def training_step(self, batch, batch_idx):
        self.log("loss", loss := F.cross_entropy(self.layer(batch[0]), batch[1]))
        return loss

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def train_dataloader(self):
        return DataLoader(rows, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(rows, batch_size=256)


module = Digits()
"""


def test_a_module_is_checked_and_tuned_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    cli.main(["check", "digits_module.py:module", "--json"], standalone_mode=False)
    options = ["--budget", "2", "--no-race", "--out", "run"]
    cli.main(["tune", "digits_module.py:module", *options], standalone_mode=False)
    plan = rb.Plan.load(tmp_path / "run" / "plan.json")
    assert (plan.job, plan.today, plan.optimizer) == ("digits_module", 16, "SGD")
