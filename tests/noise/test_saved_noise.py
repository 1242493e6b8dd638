"""What a monitor saves of a run, and that it goes on after a checkpoint."""

import json
from pathlib import Path

import pytest
import torch

import rightbatch as rb
from cases import regression_job
from rightbatch.core.json_io import read_json
from rightbatch.noise.saved_noise import FORMAT, SavedNoise
from watched_loops import draws, perceptron, train, watch


def test_every_measured_step_is_in_the_file(tmp_path: Path) -> None:
    job, model = regression_job(), perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = watch(model, optimizer)
    train(model, optimizer, draws(job, 16), 60)
    monitor.save(tmp_path / "noise.json")
    saved = read_json(tmp_path / "noise.json", SavedNoise, FORMAT)
    assert (saved.steps, saved.examples) == (60, 960)
    assert saved.parameters == 5 * 16 + 16 + 16 + 1
    assert saved.coverage == 1.0
    assert saved.source == monitor.read().source
    assert sum(r.samples for r in saved.readings) == 60
    assert {r.batch_size for r in saved.readings} == {16}
    for reading in saved.readings:
        assert set(reading.metrics) == {"adam", "adam_robust", "adam_curvature"}
    examples = [r.examples for r in saved.readings]
    assert examples == sorted(examples)
    assert examples[-1] < 960


def test_a_monitor_goes_on_with_the_run_that_it_saved(tmp_path: Path) -> None:
    job, files = regression_job(), []
    for interrupted in (False, True):
        model = perceptron()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        monitor = watch(model, optimizer)
        source = draws(job, 16)
        train(model, optimizer, source, 20)
        if interrupted:
            state = json.loads(json.dumps(monitor.state_dict()))
            monitor.close()
            monitor = watch(model, optimizer)
            monitor.load_state_dict(state)
        train(model, optimizer, source, 20)
        monitor.save(tmp_path / f"{interrupted}.json")
        path = tmp_path / f"{interrupted}.json"
        files.append(read_json(path, SavedNoise, FORMAT))
    straight, resumed = files
    assert (resumed.steps, resumed.examples) == (40, 640)
    assert len(resumed.readings) == len(straight.readings) == 10
    for one, other in zip(straight.readings, resumed.readings, strict=True):
        assert (one.step, one.samples) == (other.step, other.samples)
    assert resumed.readings[:5] == straight.readings[:5]


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(rb.RunFolderError, match="cannot write"):
        watch(perceptron()).save(tmp_path / "nowhere" / "noise.json")
