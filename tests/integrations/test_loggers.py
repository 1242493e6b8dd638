"""Every logger gets the same numbers at the same number of examples, and none harms."""

from __future__ import annotations

import json
import math
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

import rightbatch as rb
from rightbatch.integrations import loggers

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
BATCH, LR = 16, 0.1


def watched(steps: int = 12) -> rb.NoiseMonitor:
    """A monitor that has measured so many steps of a linear regression."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    monitor = rb.NoiseMonitor(model, optimizer, math.inf)
    for _ in range(steps):
        x = torch.randn(BATCH, 3)
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return monitor


class FakeRun:
    """A run with one counter of rows, as W&B's: what comes with an old step is lost."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.axes: list[tuple[str, str]] = []
        self.step = 0

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, row: dict[str, float], step: int | None = None) -> None:
        if step is None or step >= self.step:
            self.rows.append(row)
            self.step = self.step + 1 if step is None else step


def test_a_monitor_in_tensorboard_reads_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = watched()
    with SummaryWriter(str(tmp_path)) as writer:
        sent = loggers.log(monitor, to=writer)
        assert loggers.log(monitor, examples=999, to=writer) == sent
    assert sent == {**monitor.log(), "batch/size": BATCH, "batch/lr": LR}
    assert math.isfinite(sent["noise/scale"])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(cast("list[str]", events.Tags()["scalars"])) == set(sent)
    for name, value in sent.items():
        read = [(e.step, e.value) for e in events.Scalars(name)]
        assert read == [(12 * BATCH, pytest.approx(value)), (999, pytest.approx(value))]


def test_lines_of_json_have_what_is_finite(tmp_path: Path) -> None:
    path = tmp_path / "noise.jsonl"
    loggers.log({"noise/scale": 5, "noise/scale_high": math.inf}, examples=32, to=path)
    loggers.log({"batch/size": float(torch.tensor(64))}, examples=96, to=str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"examples": 32, "noise/scale": 5.0},
        {"examples": 96, "batch/size": 64.0},
    ]


def test_live_runs_are_found_and_nothing_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("wandb", "trackio", "mlflow")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert loggers.live() == {}
    assert not any(name in sys.modules for name in names)
    # Imported, but without a run; or still half imported.
    idle = SimpleNamespace(current_run=SimpleNamespace(get=lambda: None))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(context_vars=idle))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())
    assert loggers.live() == {}
    assert loggers.log({"a": 1}, examples=2) == {"a": 1.0}

    run, trackio_run = FakeRun(), SimpleNamespace(rows=[])
    trackio_run.log = trackio_run.rows.append
    calls: list[tuple[dict[str, float], int]] = []
    places = SimpleNamespace(current_run=SimpleNamespace(get=lambda: trackio_run))
    mlflow = SimpleNamespace(
        active_run=lambda: "a run", log_metrics=lambda m, step: calls.append((m, step))
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(context_vars=places))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    sent = loggers.log(watched())
    row = {**sent, "examples": 12 * BATCH}
    assert run.rows == [row]
    assert trackio_run.rows == [row]
    assert calls == [(sent, 12 * BATCH)]
    assert run.axes == [("noise/*", "examples"), ("batch/*", "examples")]


def test_rows_of_the_loop_itself_are_not_lost() -> None:
    """It logs its loss at steps 1, 2, 3, far behind the examples seen."""
    run = FakeRun()
    for step in (1, 2, 3):
        run.log({"loss": 1 / step}, step=step)
        loggers.log({"noise/scale": 8.0}, examples=64 * step, to=run)
    assert [row["loss"] for row in run.rows if "loss" in row] == [1, 1 / 2, 1 / 3]
    assert [row["examples"] for row in run.rows if "examples" in row] == [64, 128, 192]
    assert len(run.axes) == 2  # once a run


def test_a_logger_that_raises_is_told_of_once_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(metrics: dict[str, float], step: int) -> None:
        raise ConnectionError("no network")

    steps: list[int] = []
    logs = {"broken": broken, "whole": lambda metrics, step: steps.append(step)}
    monkeypatch.setattr(loggers, "live", lambda: logs)
    with pytest.warns(UserWarning, match="broken took no metrics.*no network") as told:
        for step in (1, 2, 3):
            loggers.log({"a": 1.0}, examples=step)
    assert len(told) == 1
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("method", ["log", "log_metrics"])
@pytest.mark.parametrize("rank", [None, 0, 1])
def test_whatever_has_the_method_gets_it_from_the_first_rank(
    method: str, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "joined", lambda: rank is not None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    calls: list[Any] = []
    to = SimpleNamespace(**{method: lambda *call: calls.append(call)})
    assert loggers.log({"a": 1}, examples=7, to=to) == {"a": 1.0}
    assert calls == ([] if rank else [({"a": 1.0}, 7)])


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        ({"a": 1.0}, {}, "how many examples"),
        ({"a": "much"}, {"examples": 1}, "numbers by name"),
        ([1.0], {"examples": 1}, "numbers by name"),
        ({"a": torch.zeros(2)}, {"examples": 1}, "numbers by name"),
        ({"a": 1.0}, {"examples": 1, "to": 5}, "no logger"),
    ],
)
def test_anything_else_is_refused(source: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(rb.SettingError, match=said):
        loggers.log(source, **more)


def test_the_example_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runpy.run_path(str(EXAMPLES / "log_noise.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("epoch 6  noise scale")
    assert list(Path(lines[-1].split()[-1]).glob("events.out.*"))
