"""A monitor's file as points of a run: the same noise, and clear refusals."""

import json
from pathlib import Path

import pytest
import torch

import rightbatch as rb
from cases import regression_job
from rightbatch.fit.critical_batch import critical_from_noise
from rightbatch.measure.load_noise import load_noise
from watched_loops import draws, perceptron, train, watch


def saved(path: Path, steps: int = 80) -> rb.NoiseMonitor:
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = watch(model, optimizer)
    train(model, optimizer, draws(regression_job(), 16), steps)
    monitor.save(path)
    return monitor


def test_points_hold_what_the_monitor_reads(tmp_path: Path) -> None:
    monitor = saved(tmp_path / "noise.json")
    points = load_noise(tmp_path / "noise.json")
    whole = monitor.read(window=10**6)
    weights = [p.groups * p.group_size for p in points]
    assert sum(weights) == 80 * 16

    def scale(metric: str) -> float:
        noise = [getattr(p, metric).trace for p in points]
        signal = [getattr(p, metric).grad_norm_sq for p in points]
        if metric != "plain":  # of every fourth step
            return sum(noise) / sum(signal)
        noise, signal = (
            [w * v for w, v in zip(weights, values, strict=True)]
            for values in (noise, signal)
        )
        return sum(noise) / sum(signal)

    assert scale("plain") == pytest.approx(whole.noise_scale.value, rel=1e-9)
    own = whole.metrics["adam_curvature"].noise_scale.value
    assert scale("preconditioned") == pytest.approx(own, rel=0.1)
    for point in points:
        assert point.loss is None
        ratio = point.plain.trace / point.plain.grad_norm_sq
        assert point.noise_scale.value == pytest.approx(ratio)
        assert point.noise_scale.low < ratio < point.noise_scale.high
    law = critical_from_noise(points, 16)
    assert law.critical_batch.low > 0


def test_files_that_tell_nothing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.json"
    with pytest.raises(rb.RunFolderError, match="cannot read") as caught:
        load_noise(path)
    assert "monitor.save" in caught.value.fix
    saved(path, steps=6)
    with pytest.raises(rb.UnidentifiedError, match="too little noise") as few:
        load_noise(path)
    assert few.value.seen == "6 measured steps of 6"
    watch(perceptron()).save(path)
    with pytest.raises(rb.UnidentifiedError, match="too little noise"):
        load_noise(path)
    saved(path)
    whole = path.read_text()
    path.write_text(whole[:-50])
    with pytest.raises(rb.RunFolderError, match="not JSON"):
        load_noise(path)
    plain = json.loads(whole)
    del plain["readings"][0]["plain"]
    path.write_text(json.dumps(plain))
    with pytest.raises(rb.RunFolderError, match="damaged or was edited"):
        load_noise(path)
    path.write_text(json.dumps({**json.loads(whole), "format": "rightbatch/plan/4"}))
    with pytest.raises(rb.RunFolderError, match="not a rightbatch/noise/1 file"):
        load_noise(path)
