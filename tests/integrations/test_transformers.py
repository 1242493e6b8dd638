"""Hugging Face's Trainer, on a GPT-2 of 5,000 parameters in float64, on the CPU."""

import dataclasses
import itertools
import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rightbatch as rb
from launching import torchrun

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers

from rightbatch.cli.main import cli
from rightbatch.integrations import trainer_loss
from rightbatch.integrations.transformers import Callback, apply_plan, job
from trainers import Texts, bert, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]
EXAMPLES = Path(__file__).parents[2] / "examples"
STAGES = rb.schedules.Stages(((0, 4), (100, 8), (200, 16), (300, 8)))
WSD: dict[str, Any] = {
    "data": Texts(128, ragged=True),
    "num_train_epochs": 3,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "warmup_stable_decay",
    "lr_scheduler_kwargs": {"num_decay_steps": 30},
    "warmup_steps": 10,
}


class Switch(transformers.TrainerCallback):
    """Changes the accumulation by hand after a step, as people do."""

    def __init__(self, after: int, to: int) -> None:
        self.after, self.to = after, to

    def on_step_end(self, args: Any, state: Any, *_: Any, **_others: Any) -> None:
        if state.global_step == self.after:
            args.gradient_accumulation_steps = self.to


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of three epochs through three changes of the batch."""
    run = trainer(
        tmp_path_factory.mktemp("run"), **WSD, save_strategy="steps", save_steps=40
    )
    Callback(None, STAGES).attach(run)
    run.train()
    return run


@pytest.mark.parametrize(
    ("k", "switch", "seen", "size"),
    [
        (2, Switch(3, 4), 128, (0.5, 1.5)),  # 6 micro-batches seen: not by 4
        (4, Switch(3, 2), 88, (0.5, 1.0)),
        (2, Switch(4, 4), 128, (1.0, 1.0)),
    ],
    ids=["misaligned", "lowered", "aligned and raised"],
)
def test_the_trainer_alone(
    tmp_path: Path, k: int, switch: Switch, seen: int, size: tuple[float, float]
) -> None:
    """What this callback is for; a release that changes it is to be noticed."""
    alike = {"data": [Texts(1)[0]] * 128, "learning_rate": 0.0}  # one gradient for all
    plain = trainer(
        tmp_path, callbacks=[switch], gradient_accumulation_steps=k, **alike
    )
    plain.train()
    assert sum(plain.counts) == seen
    assert (min(plain.size), max(plain.size)) == pytest.approx(size, rel=1e-6)


def test_every_gradient_is_the_large_batchs(staged: Any) -> None:
    sizes = [size for size, _ in itertools.groupby(staged.counts)]
    assert sizes == [4, 8, 12, 16, 8]  # three micro-batches, until four may begin
    assert max(staged.off) < 1e-12  # float64; 2.7e-16 [measured]
    rows = [row for batch in staged.batches for row in batch]
    for epoch in range(3):
        assert len(set(rows[epoch * 128 : (epoch + 1) * 128])) == 128  # each once
    assert len(rows) == 3 * 128


def test_the_run_and_its_decay_end_by_examples(staged: Any, tmp_path: Path) -> None:
    assert staged.state.global_step == staged.state.max_steps == 96
    plain = trainer(tmp_path, **WSD)
    plain.train()
    seen = 0
    for count, lr in zip(staged.counts, staged.rates, strict=True):
        wanted = plain.rates[seen // 4] * math.sqrt(count / 4)  # Adam's rule
        assert lr == pytest.approx(wanted, rel=1e-9)
        seen += count
    assert staged.rates[-1] < 2e-4 < 1e-2 == max(plain.rates)
    logs = [h for h in staged.state.log_history if "loss" in h]
    assert all(2 < h["loss"] < 4 for h in logs)  # a mean over updates
    assert 2 < staged.state.log_history[-1]["train_loss"] < 4
    assert logs[-1]["batch/updates"] == len(staged.counts) - 3  # at 90 of 96


@pytest.mark.parametrize("step", [40, 80])
def test_a_resumed_run_is_the_same(staged: Any, tmp_path: Path, step: int) -> None:
    again = trainer(tmp_path, **WSD)
    Callback(None, STAGES).attach(again)
    again.train(resume_from_checkpoint=f"{staged.args.output_dir}/checkpoint-{step}")
    rest = len(again.counts)
    assert 5 < rest < len(staged.counts)
    assert again.batches == staged.batches[-rest:]
    assert again.rates == staged.rates[-rest:]
    assert max(again.off) < 1e-12
    pairs = zip(again.model.parameters(), staged.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_noise_reaches_every_logger(tmp_path: Path) -> None:
    class Logger(transformers.TrainerCallback):
        seen: dict[str, float]

        def on_log(self, *_: Any, **given: Any) -> None:
            self.seen = getattr(self, "seen", {}) | given["logs"]

    logger = Logger()
    data = Texts(512)
    data.ids %= 4  # so that there is something to learn
    run = trainer(
        tmp_path,
        data=data,
        callbacks=[logger],
        kind=None,
        max_steps=120,
        per_device_train_batch_size=8,
    )
    callback = Callback().attach(run)
    run.train()
    first = next(h for h in run.state.log_history if "noise/scale" in h)
    last = [h for h in run.state.log_history if "loss" in h][-1]
    assert first["step"] <= 40
    assert last["step"] == 120
    assert last["noise/steps"] >= 1
    assert (
        0 < first["noise/scale_low"] < first["noise/scale"] < first["noise/scale_high"]
    )
    assert logger.seen["noise/scale"] == run.state.log_history[-1]["noise/scale"]
    assert not run.model._forward_hooks  # taken away
    assert callback.monitor is not None
    assert callback.monitor.counts.steps == 120
    assert callback.monitor.counts.measured >= 3  # of the loan of four, one verified


def test_a_live_schedule_is_followed(tmp_path: Path) -> None:
    run = trainer(tmp_path, kind=None, num_train_epochs=4)
    follow = rb.schedules.FollowNoise(4, fraction=1e6, most=16)
    monitor = rb.NoiseMonitor(run.model, overhead=math.inf)
    callback = Callback(monitor, follow).attach(run)
    run.train()
    assert callback.steps is not None
    assert [c.batch_to for c in callback.steps.controller.changes][:2] == [8, 16]
    assert run.state.global_step == 128


def test_a_gradient_that_grows_with_the_accumulation_is_named(tmp_path: Path) -> None:
    """BERT for classification takes num_items_in_batch and leaves it aside."""
    data = [{"input_ids": row["input_ids"], "labels": 1} for row in Texts(32)]
    four = {"gradient_accumulation_steps": 4, "data": data}
    plain = trainer(tmp_path, bert(), **four)
    plain.train()
    assert plain.size == pytest.approx([4.0, 4.0], rel=1e-4)  # float32
    with pytest.raises(rb.SettingError, match="grows with their number") as error:
        Callback(None, STAGES).attach(trainer(tmp_path, bert(), data=data))
    assert error.value.fix == "trainer.loss_is_scaled_for_ga = False"
    with pytest.warns(UserWarning, match="grows with their number"):
        job(trainer(tmp_path, bert(), **four))
    with pytest.warns(UserWarning, match="grows with their number"):
        Callback().attach(trainer(tmp_path, bert(), **four))
    mended = trainer(tmp_path, bert(), **four)
    mended.loss_is_scaled_for_ga = False
    mended.train()
    assert mended.size == pytest.approx([1.0, 1.0], rel=1e-4)
    assert isinstance(job(mended_twin := trainer(tmp_path, bert(), data=data)), rb.Job)
    assert not trainer_loss.TrainerLoss(mended_twin).by_count


@pytest.mark.parametrize(
    ("settings", "schedule", "said"),
    [
        ({}, rb.schedules.Constant(6), "4 are the least"),
        ({}, rb.schedules.Ramp(2, 8, 100), "4 are the least"),
        ({}, 64, "schedule=64"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, STAGES, "reduce_lr_on"),
        ({"fp16": True}, STAGES, "fp16=True"),
        ({"auto_find_batch_size": True}, STAGES, "auto_find_batch_size"),
        ({"data": iter(())}, None, "a map-style dataset"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    tmp_path: Path, settings: dict[str, Any], schedule: Any, said: str
) -> None:
    changed = {k: v for k, v in settings.items() if k != "data"}
    run = trainer(tmp_path)
    for name, value in changed.items():
        setattr(run.args, name, value)
    run.train_dataset = settings.get("data", run.train_dataset)
    with pytest.raises(rb.SettingError) as error:
        Callback(None, schedule).attach(run)
    assert re.search(said, f"{error.value.seen} {error.value.fix}")


def test_what_cannot_begin_is_refused(staged: Any, tmp_path: Path) -> None:
    checkpoint = f"{staged.args.output_dir}/checkpoint-40"
    with pytest.raises(rb.SettingError, match="cannot follow") as error:
        trainer(tmp_path, callbacks=[Callback(schedule=STAGES)]).train()
    assert "attach" in error.value.fix
    for setting in ("ignore_data_skip", "restore_callback_states_from_checkpoint"):
        run = trainer(tmp_path, **WSD)
        setattr(run.args, setting, True)
        Callback(None, STAGES).attach(run)
        with pytest.raises(rb.SettingError, match="cannot"):
            run.train(resume_from_checkpoint=checkpoint)


def test_a_scheduler_is_never_stepped_past_its_end(tmp_path: Path) -> None:
    """Seven steps of 4: the last update, of 16, would be steps 5 to 8."""
    grow = rb.schedules.Stages(((0, 4), (16, 16)))
    run = trainer(tmp_path, max_steps=7, lr_scheduler_type="cosine")
    Callback(None, grow).attach(run)
    run.train()
    assert run.state.global_step == 8
    assert run.counts[-1] == 16
    assert set(run.lr_scheduler.get_last_lr()) == {0.0}


def test_a_callback_may_be_new_to_a_checkpoint(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", save_strategy="steps", save_steps=16)
    plain.train()
    run = trainer(tmp_path / "on", kind=None, save_strategy="steps", save_steps=16)
    Callback().attach(run)
    run.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-16"))
    assert (tmp_path / "on" / "checkpoint-32").exists()


def test_a_batch_is_never_larger_than_an_epoch(tmp_path: Path) -> None:
    """128 examples: the rate is that of the batch that is made."""
    run = trainer(tmp_path, num_train_epochs=2, lr_scheduler_type="constant")
    callback = Callback(None, rb.schedules.Stages(((0, 4), (64, 512)))).attach(run)
    run.train()
    assert callback.steps is not None
    assert callback.steps.controller.batch_size == 128 == run.counts[-1]
    assert run.rates[-1] == pytest.approx(5e-5 * math.sqrt(128 / 4))


def test_a_schedules_own_rate_goes_on_while_a_batch_waits(tmp_path: Path) -> None:
    """At 100 examples 25 micro-batches are seen: six can begin behind 30 only."""
    cut = rb.schedules.Rate.steps({0: 1.0, 100: 1 / 6})
    grow = rb.schedules.InsteadOfDecay(4, cut, most=24, form="seesaw")
    run = trainer(tmp_path, lr_scheduler_type="constant", learning_rate=1e-3)
    Callback(None, grow, rule="none").attach(run)
    run.train()
    assert run.counts[24:27] == [4, 20, 8]  # 8 are left
    assert run.rates[25] == pytest.approx(1e-3 / 6 * math.sqrt(20 / 4))


def test_the_linter_stops_a_run_before_it_begins(tmp_path: Path) -> None:
    class Batchy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
            )

        def forward(self, input_ids: Any, labels: Any) -> Any:
            x = self.net(input_ids.float() / 40)
            return {"loss": (x[:, 0] - labels[:, 0].float()).square().mean()}

    run = trainer(tmp_path, Batchy(), gradient_accumulation_steps=4)
    with pytest.raises(rb.JobError, match="RB3"):
        Callback(raise_on=("RB3",)).attach(run)
    Callback(raise_on="RB3").attach(trainer(tmp_path))


def test_a_job_is_what_the_trainer_trains(tmp_path: Path) -> None:
    """The same weights after four steps of one batch each, clipped and warmed up."""
    settings: dict[str, Any] = {
        "data": Texts(32, ragged=True), "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4, "num_train_epochs": 4, "warmup_steps": 2,
        "max_grad_norm": 0.1, "weight_decay": 0.5, "learning_rate": 1e-2,
    }  # fmt: skip
    run = trainer(tmp_path, held=Texts(10, ragged=True, seed=1), **settings)
    made = job(run)
    assert (made.batch_size, made.epochs, made.clip_norm) == (32, 4, 0.1)
    assert run.optimizer is None
    assert run.lr_scheduler is None
    optimizer = made.make_optimizer(made.make_model())
    decays = {
        group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups
    }
    ours = rb.train(made)
    held = made.evaluated(run.model)
    assert held == pytest.approx(run.evaluate()["eval_loss"], rel=0.05)  # mean of means
    run.train()
    trained: Any = run.optimizer
    theirs = trained.param_groups
    assert decays == {g["weight_decay"]: len(g["params"]) for g in theirs}
    for a, b in zip(ours.model.parameters(), run.model.parameters(), strict=True):
        # They moved by 1e-2; clipping adds 1e-6 to the norm there.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    with pytest.raises(rb.SettingError, match="no job") as error:
        job(run)
    assert "it has made 4 steps" in error.value.seen


def test_a_plan_becomes_arguments(tmp_path: Path) -> None:
    kwargs = {"num_decay_steps": 40, "min_lr_ratio": 0.1}
    numbers = {"weight_decay": 0.1, "adam_beta2": 0.98, "lr_scheduler_kwargs": kwargs}
    args = trainer(tmp_path, max_steps=100, warmup_steps=10, **numbers).args
    plan = _plan(batch_size=16, micro_batch=8, today=4)
    new = apply_plan(args, plan)
    said = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.002,
        "adam_beta2": 0.98**4,
        "adam_epsilon": 5e-9,
        "weight_decay": 0.2,  # of every example as before: lr x decay / B
        "max_steps": 25,
        "warmup_steps": 2,
    }
    assert {name: getattr(new, name) for name in said} == pytest.approx(said)
    assert new.lr_scheduler_kwargs == kwargs | {"num_decay_steps": 10}
    assert args.lr_scheduler_kwargs == kwargs
    assert args.max_steps == 100  # left as they were
    assert new.seed == args.seed
    with pytest.warns(UserWarning, match="not decided"):
        apply_plan(args, dataclasses.replace(plan, decided=False))
    for wrong in (new, trainer(tmp_path, gradient_accumulation_steps=3).args):
        with pytest.raises(rb.SettingError, match="the plan is for other"):
            apply_plan(wrong, plan)


def _plan(batch_size: int, micro_batch: int, today: int) -> rb.Plan:
    from rightbatch.schedules.scaling import scaling_for

    return rb.Plan(
        job="j", spec="", decided=True, grade="laws only", objective="time",
        batch_size=batch_size, micro_batch=micro_batch, today=today, lr=0.002,
        accumulation=batch_size // micro_batch, optimizer="AdamW", lr_factor=1.0,
        scaling=scaling_for("adam", today, batch_size, decoupled_decay=True),
        schedule="constant", flat_low=8, flat_high=32, predicted={}, why=(),
        alternatives=(), limits=(), verdict="", memory_limit_bytes=1e9,
    )  # fmt: skip


def test_tune_and_check_take_a_trainer_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"{EXAMPLES / 'transformers_trainer.py'}:trainer"
    monkeypatch.chdir(tmp_path)
    cli.main(["check", spec], standalone_mode=False)
    options = ["--budget", "4", "--no-race", "--out", "run"]
    cli.main(["tune", spec, *options], standalone_mode=False)
    plan = rb.Plan.load(tmp_path / "run" / "plan.json")
    assert (plan.today, plan.optimizer) == (8, "AdamW")


def test_two_ranks_make_the_large_batchs_gradient(tmp_path: Path) -> None:
    done = torchrun(Path(__file__).parents[1] / "trainer_ranks.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["counts"] == [8] * 8 + [16] * 4
    assert max(seen["off"]) < 1e-12
    assert seen["noise"] >= 1


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "transformers_trainer.py"), run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1]
    assert "'batch/size': 32.0" in last
    assert "'noise/scale'" in last
