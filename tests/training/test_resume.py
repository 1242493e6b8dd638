"""Runs that are interrupted, killed, gone on with: bit for bit, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb
from accumulation_ranks import Faults
from cases import regression_job
from launching import TESTS, environment, launched
from resumed_job import job as resumed_job
from resumed_job import plain as plain_job
from resumed_runs import poisoned, same, state_of, stop_after
from rightbatch.data.loading.ledger import Ledger
from rightbatch.training.checkpoint import Checkpoints, load_checkpoint
from rightbatch.training.interrupt import Interrupt
from rightbatch.training.trace import read_trace

SCHEDULE = rb.schedules.Ramp(16, 48, 3000)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_goes_on_bit_for_bit(workers: int, tmp_path: Path) -> None:
    """Dropout, BatchNorm, AdamW, augmentation by three generators, a growing batch."""
    how: dict[str, Any] = {
        "schedule": SCHEDULE,
        "micro_batch": 8,
        "num_workers": workers,
        "ledger": True,
    }
    rb.train(resumed_job, epochs=8, out=tmp_path / "whole", **how)
    cut = tmp_path / "cut"
    first = rb.train(resumed_job, epochs=8, out=cut, watch=stop_after(5), **how)
    assert first.interrupted
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    torch.rand(100)
    second = rb.train(resumed_job, out=cut, resume=True, watch=stop_after(30))
    assert second.resumed == first.last.steps
    assert second.interrupted
    last = rb.train(resumed_job, epochs=8, out=cut, resume="auto", **how)
    assert same(state_of(cut), state_of(tmp_path / "whole"))
    rows = {r.steps: r for r in read_trace(tmp_path / "whole" / "trace.jsonl")}
    found = {r.steps: r for r in last.rows}
    assert len(found) <= len(rows) + 2  # one more wherever it was interrupted
    assert all(found[steps].loss == row.loss for steps, row in rows.items())
    assert last.events == tuple(e for row in rows.values() for e in row.events)
    audit = Ledger(cut / "ledger").audit()
    assert (audit.lost, audit.repeated) == (0, 0)


def test_going_further_is_the_longer_run(tmp_path: Path) -> None:
    job = replace(plain_job, target=None)
    rb.train(job, batch_size=32, epochs=2, out=tmp_path / "a")
    rb.train(job, epochs=4, out=tmp_path / "a", resume=True)
    rb.train(job, batch_size=32, epochs=4, out=tmp_path / "b")
    one, two = state_of(tmp_path / "a"), state_of(tmp_path / "b")
    assert same(one["model"], two["model"])
    assert same(one["optimizer"], two["optimizer"])


def killed(folder: Path, kills: int, workers: int) -> None:
    """SIGKILL the command line so many times at random; then let it finish."""
    command = launched(
        *("-m", "rightbatch", "train", f"{TESTS / 'resumed_job.py'}:job"),
        *("--out", folder, "--epochs", "40", "--schedule", "ramp:16:48:3000"),
        *("--micro-batch", "8", "--workers", str(workers), "--resume", "--ledger"),
        *("--save-every", "0.02", "--keep-threads"),
    )
    generator = random.Random(workers)
    code, error = 1, b""
    for life in range(kills + 1):
        before = time.time()
        process = subprocess.Popen(
            command,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        while life < kills and process.poll() is None:
            marks = [p.stat().st_mtime for p in folder.glob("checkpoints/*.json")]
            if marks and max(marks) > before:
                time.sleep(generator.random() * 0.4)
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        error = process.communicate(timeout=120)[1]
        code = process.returncode
    assert code == 0, error.decode()[-800:]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_bit_for_bit(workers: int, tmp_path: Path) -> None:
    """Three SIGKILLs each; benchmarks/resume.py sends 55."""
    how: dict[str, Any] = {"schedule": SCHEDULE, "micro_batch": 8, "ledger": True}
    rb.train(resumed_job, epochs=40, out=tmp_path / "whole", **how)
    killed(tmp_path / "killed", 3, workers)
    whole, other = state_of(tmp_path / "whole"), state_of(tmp_path / "killed")
    for key in ("model", "buffers", "optimizer", "random", "controller", "stream"):
        assert same(whole[key], other[key]), key
    audit = Ledger(tmp_path / "killed" / "ledger").audit()
    assert (audit.lost, audit.repeated) == (0, 0)


# Memory, errors, numbers that are not


def test_memory_that_runs_out_anywhere_changes_nothing(tmp_path: Path) -> None:
    """Forward, backward and inside the optimizer, at several steps of a run."""

    def run(phase: str, passes: list[int]) -> rb.Run:
        made: list[torch.nn.Module] = []

        def make_model() -> torch.nn.Module:
            model = torch.nn.ModuleDict(
                {
                    "blocks": torch.nn.Sequential(
                        torch.nn.Linear(64, 32),
                        torch.nn.Tanh(),
                        torch.nn.Linear(32, 10),
                    )
                }
            )
            model.forward = lambda x: model["blocks"](x)  # pyrefly: ignore
            made.append(model)
            if phase in ("forward", "backward") and len(made) == 1:
                Faults(model, phase, passes)
            return model

        class Greedy(torch.optim.AdamW):
            count = 0

            def step(self, closure: Any = None) -> Any:
                Greedy.count += 1
                if phase == "optimizer" and Greedy.count in passes:
                    half = self.param_groups[0]["params"][0]
                    half.data.add_(1.0)  # as after an update broken off
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return super().step(closure)

        job = replace(
            plain_job,
            model=make_model,
            optimizer=lambda params: Greedy(params, lr=1e-3),
        )
        out = tmp_path / f"{phase}-{passes}"
        return rb.train(job, batch_size=32, epochs=3, micro_batch=16, out=out)

    clean = run("none", [])
    for phase, passes in (
        ("forward", [1, 30, 61]),
        ("backward", [2, 31]),
        ("optimizer", [1]),
        ("optimizer", [20, 40]),
    ):
        faulty = run(phase, passes)
        assert faulty.last.steps == clean.last.steps
        assert any("memory" in event for event in faulty.events)
        for p, q in zip(
            clean.model.parameters(), faulty.model.parameters(), strict=True
        ):
            assert (p - q).norm() <= 1e-6 * p.norm()


def test_a_loss_that_is_not_finite_leaves_the_state_before_it(tmp_path: Path) -> None:
    with pytest.raises(rb.JobError, match="became nan") as caught:
        rb.train(poisoned(10), batch_size=16, epochs=5, out=tmp_path / "r")
    assert "--nonfinite skip" in str(caught.value)
    assert state_of(tmp_path / "r")["steps"] == 9
    how: dict[str, Any] = {"resume": True, "accept_changes": True}  # a loss mended
    rb.train(regression_job(), epochs=5, out=tmp_path / "r", **how)
    rb.train(regression_job(), batch_size=16, epochs=5, out=tmp_path / "s")
    assert same(state_of(tmp_path / "r")["model"], state_of(tmp_path / "s")["model"])


def test_or_is_skipped_and_told() -> None:
    run = rb.train(poisoned(10), batch_size=16, epochs=3, nonfinite="skip")
    assert any("skipped" in event for event in run.events)
    assert run.last.steps == 3 * 256 // 16


# What a folder may hold


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    out = tmp_path / "r"
    rb.train(plain_job, batch_size=32, epochs=1, out=out)
    rb.train(plain_job, epochs=2, out=out, resume=True)
    newest, older = Checkpoints(out / "checkpoints").paths()
    content = newest.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-9] + b"123456789", b""):
        newest.write_bytes(damaged)
        with pytest.raises(rb.RunFolderError, match="damaged"):
            load_checkpoint(newest)
        with pytest.warns(UserWarning, match="the one before"):
            found = Checkpoints(out / "checkpoints").newest()
        assert found is not None
        assert found[0] == older
    older.write_bytes(b"")
    with pytest.raises(rb.RunFolderError, match="none of the 2"):
        rb.train(plain_job, epochs=3, out=out, resume=True)


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code was run')",))


def test_no_code_runs_from_a_checkpoint_that_vouches_for_itself(tmp_path: Path) -> None:
    """With a fitting length and digest; only the loading itself is left to refuse."""
    import hashlib

    folder = tmp_path / "r" / "checkpoints"
    folder.mkdir(parents=True)
    path = folder / "step-0000000005.pt"
    torch.save({"format": "rightbatch/checkpoint/4", "model": Malice()}, path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    about = {"bytes": len(content), "sha256": digest}
    path.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(rb.RunFolderError, match="cannot read"):
        load_checkpoint(path)
    torch.save({"format": "other"}, tmp_path / "y.pt")
    with pytest.raises(rb.RunFolderError, match="is not a"):
        load_checkpoint(tmp_path / "y.pt")


def test_what_could_not_be_read_back_is_refused_when_saved(tmp_path: Path) -> None:
    state = {"optimizer": {"state": [torch.zeros(3), Malice()]}}
    with pytest.raises(rb.RunFolderError, match=r"\['state'\]\[1\] is a "):
        Checkpoints(tmp_path).save(state, steps=1, about={})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"x": torch.ones(3)}, steps=1, about={})
    real = torch.save

    def full(value: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(rb.RunFolderError, match="cannot write"):
        checkpoints.save({"x": torch.zeros(3)}, steps=2, about={})
    monkeypatch.setattr(torch, "save", real)
    found = checkpoints.newest()
    assert found is not None
    assert torch.equal(found[1]["x"], torch.ones(3))
    assert not list(tmp_path.glob("*.tmp"))


def test_training_goes_on_when_a_checkpoint_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.save, {"n": 0}

    def sometimes(value: Any, file: Any) -> None:
        calls["n"] += 1
        if calls["n"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, file)

    monkeypatch.setattr(torch, "save", sometimes)
    with pytest.warns(UserWarning, match="training goes on"):
        run = rb.train(
            plain_job, batch_size=32, epochs=1, out=tmp_path / "r", save_every_s=0
        )
    assert run.last.steps == 16
    assert run.checkpoint is not None


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    """And what lacks a manifest, which is no checkpoint and not ours to delete."""
    checkpoints = Checkpoints(tmp_path)
    for steps in (1, 2, 3, 10):
        checkpoints.save({"n": steps}, steps=steps, about={"job": "x"})
        if steps == 1:
            (tmp_path / "step-0000000001.json").unlink()
    assert [p.name for p in checkpoints.paths()] == [
        "step-0000000010.pt",
        "step-0000000003.pt",
    ]
    assert len(list(tmp_path.iterdir())) == 4 + 1
    assert (tmp_path / "step-0000000001.pt").exists()


def with_optimizer(kind: Any, lr: float) -> rb.Job:
    return replace(plain_job, optimizer=lambda params: kind(params, lr=lr))


def test_the_checkpoint_of_another_job_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "r"
    rb.train(plain_job, batch_size=32, epochs=1, out=out)
    wider = replace(plain_job, model=lambda: torch.nn.Linear(64, 10))
    for other, what in (
        (wider, "parameter .* differs"),
        (replace(plain_job, batch_size=16), "batch_size differs"),
        (replace(plain_job, seed=3), "seed differs"),
        (with_optimizer(torch.optim.AdamW, 2e-3), "of another job.*lr differs"),
        (with_optimizer(torch.optim.Adam, 1e-3), "of another job.*optimizer differs"),
    ):
        with pytest.raises(rb.SettingError, match=what):
            rb.train(other, out=out, resume=True)
    with pytest.raises(rb.SettingError, match="begun with another schedule"):
        rb.train(plain_job, batch_size=64, out=out, resume=True)
    with pytest.raises(rb.SettingError, match="begun with another rule"):
        rb.train(plain_job, rule="sqrt", out=out, resume=True)


def test_there_must_be_something_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(rb.RunFolderError, match="no run to go on with"):
        rb.train(plain_job, out=tmp_path / "none", resume=True)
    with pytest.raises(rb.SettingError, match="folder"):
        rb.train(plain_job, epochs=1, resume=True)
    with pytest.raises(rb.SettingError, match="resume must be"):
        rb.train(plain_job, epochs=1, out=tmp_path / "x", resume="yes")  # pyrefly: ignore
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    (tmp_path / "half" / "run.json").write_text("{}")  # killed before the first save
    rb.train(plain_job, epochs=1, out=tmp_path / "half", resume="auto")


def test_a_start_that_trained_nothing_is_made_again_in_its_folder(
    tmp_path: Path,
) -> None:
    def broken(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        raise KeyError("a typo")

    out = tmp_path / "r"
    with pytest.raises(rb.JobError, match="KeyError"):
        rb.train(replace(plain_job, loss=broken), epochs=1, out=out)
    rb.train(plain_job, epochs=1, out=out)
    before = (out / "trace.jsonl").read_bytes()
    with pytest.raises(rb.RunFolderError, match="already holds a run"):
        rb.train(replace(plain_job, loss=broken), epochs=1, out=out)
    assert (out / "trace.jsonl").read_bytes() == before


def test_signals_finish_the_step_and_a_second_ctrl_c_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGTERM)  # a library may have set its own
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": rb.schedules.Constant(8), "batch_size": 8},
        {"micro_batch": 64, "batch_size": 32},
        {"schedule": rb.schedules.Ramp(16, 4096, 5000)},
        {"schedule": rb.schedules.Constant(16), "largest": 8},
        {"ledger": True},
        {"save_every_s": -1.0},
        {"shard": True},
        {"schedule": rb.schedules.Ramp(16, 64, 5000), "rule": "cubic"},
        {"micro_batch": 0},
        {"batch_size": 4, "examples": 3},
        {"batch_size": 0},
        {"batch_size": 4, "epochs": -1},
        {"batch_size": 4, "epochs": None, "examples": 0},
        {"batch_size": 1000},
        {"epochs": None},  # no target: no end
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"epochs": 50, **wrong}
    with pytest.raises(rb.SettingError):
        rb.train(plain_job, **settings)


# What is not ours to fail by


class Fails(torch.utils.data.TensorDataset):
    """A data set that fails at one example, until it is mended."""

    at = 200

    def __getitem__(self, index: int) -> Any:
        if index == self.at:
            raise KeyError("torn")
        return super().__getitem__(index)


@pytest.mark.parametrize("what", ["example", "evaluate", "memory"])
def test_what_fails_between_two_steps_loses_none_of_them(
    what: str, tmp_path: Path
) -> None:
    calls = {"n": 0}

    def evaluate(model: torch.nn.Module) -> float:
        calls["n"] += 1
        if what != "example" and calls["n"] == 3:
            raise MemoryError("no room") if what == "memory" else OSError("no net")
        return 1.0

    x, y = regression_job().data
    data = Fails(x, y)
    job = regression_job(data=data, evaluate=evaluate)
    if what != "example":
        data.at = -1
    with pytest.raises(rb.JobError) as failed:
        rb.train(job, examples=512, out=tmp_path / "r")
    told = {"example": "Fails.at", "evaluate": "no net", "memory": "no room"}[what]
    assert told in failed.value.seen or "test_resume.py" in failed.value.seen
    steps = state_of(tmp_path / "r")["steps"]
    assert steps > 0
    if what != "memory":
        assert f"step {steps} is saved" in failed.value.fix
    data.at = -1
    rb.train(job, examples=512, out=tmp_path / "r", resume=True)
    rb.train(job, examples=512, out=tmp_path / "s")
    ends = [state_of(tmp_path / name)["model"] for name in "rs"]
    assert same(*ends)


def two_saved(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for steps in (1, 2):
        checkpoints.save({"n": steps}, steps=steps, about={})
    return checkpoints


@pytest.mark.parametrize(
    "manifest",
    [
        *("", "[]", "{}", '{"bytes": "x"}'),
        *("[" * 100_000, "\xff", '{"bytes": ' + "9" * 5000),
    ],
)
def test_a_damaged_manifest_is_a_damaged_checkpoint_and_hides_no_healthy_one(
    manifest: str, tmp_path: Path
) -> None:
    checkpoints = two_saved(tmp_path)
    (tmp_path / "step-0000000002.json").write_bytes(manifest.encode("latin-1"))
    with pytest.raises(rb.RunFolderError):
        load_checkpoint(tmp_path / "step-0000000002.pt")
    with pytest.warns(UserWarning, match="the one before"):
        found = checkpoints.newest()
    assert found is not None
    assert found[1]["n"] == 1


def test_memory_that_runs_out_while_reading_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = two_saved(tmp_path)
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ):

        def load(*args: Any, error: Exception = error, **options: Any) -> Any:
            raise error

        monkeypatch.setattr(torch, "load", load)
        with pytest.raises(rb.JobError, match="memory ran out while"):
            checkpoints.newest()


def test_links_in_the_place_of_temporary_files_are_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step-0000000001.tmp", "step-0000000001.pt", "step-0000000001.json"):
        (folder / name).symlink_to(other)
    Checkpoints(folder).save({"n": 1}, steps=1, about={})
    assert other.read_text() == "mine"
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_what_kills_have_left_is_cleared_away(tmp_path: Path) -> None:
    out = tmp_path / "r"
    rb.train(regression_job(), examples=64, out=out)
    left = [".run.json-abcdefgh", ".trace.jsonl-12345678"]
    left += [
        "checkpoints/.step-0000000004.json-abcd_fgh",
        "checkpoints/step-0000000003.tmp",
    ]
    for name in left:
        (out / name).write_bytes(b"half")
    rb.train(regression_job(), examples=128, out=out, resume=True)
    assert not [name for name in left if (out / name).exists()]


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    """It vouches for itself, and lacks what a run needs."""
    out = tmp_path / "r"
    rb.train(regression_job(), examples=64, out=out)
    checkpoints = Checkpoints(out / "checkpoints")
    found = checkpoints.newest()
    assert found is not None
    for key, value in (("stream", 5), ("model", {}), ("random", None), ("steps", "x")):
        state = {**found[1], key: value}
        checkpoints.save(state, steps=99, about={})
        with pytest.raises(rb.RightbatchError) as refused:
            rb.train(regression_job(), examples=128, out=out, resume=True)
        assert "step-0000000099" in refused.value.what
