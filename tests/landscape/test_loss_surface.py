"""Surfaces: the loss itself at every place; nothing of the user's is touched."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vl_convert
from torch import Tensor, nn

import rightbatch as rb
from cases import regression_job
from rightbatch.core.errors import NotFiniteError, SettingError
from rightbatch.landscape.loss_surface import surface
from rightbatch.landscape.surface_page import charts
from rightbatch.landscape.training_paths import trajectories


def job_and_paths() -> tuple[rb.Job, Any]:
    job = regression_job(examples=64)
    return job, trajectories(job, (8, 32), examples=256, points=6)


def direct(job: rb.Job, weights: Tensor) -> float:
    x, y = job.data
    return float((x @ weights[:, None] - y).square().mean())


def test_a_plane_has_the_loss_of_its_weights() -> None:
    job, paths = job_and_paths()
    found = surface(job, paths, points=5, examples=64)
    together = torch.cat([path.points for path in paths]).double()
    middle = together.mean(0)
    # The plane, from the points and where they lie on it.
    places = torch.from_numpy(np.concatenate([walk.places for walk in found.walks]))
    directions = torch.linalg.lstsq(places, together - middle).solution
    for i, a in enumerate(found.axes[0]):
        for j, b in enumerate(found.axes[1]):
            at = middle + a * directions[0] + b * directions[1]
            assert found.losses[i, j] == pytest.approx(
                direct(job, at.float()), rel=1e-3
            )
    for walk, path in zip(found.walks, paths, strict=True):
        own = [direct(job, row) for row in path.points]
        assert walk.losses == pytest.approx(own, rel=1e-4)
    assert found.centre == pytest.approx(direct(job, middle.float()), rel=1e-4)
    alone = surface(job, paths[0], points=3)
    assert [walk.name for walk in alone.walks] == [paths[0].name]
    assert 0.5 < sum(found.explained) <= 1 + 1e-9


def test_batchnorm_normalises_by_the_examples_looked_at() -> None:
    """Its averages at the end of a run belong to no other place on the way."""

    def normed() -> nn.Module:
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)
        return nn.Sequential(*layers)

    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 30 + 100
    job = rb.Job(
        model=normed,
        loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        data=(x, x.sum(1, keepdim=True) / 100 - 4),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05),
        batch_size=16,
    )
    paths = trajectories(job, (8, 16), examples=640, points=4)
    walk = surface(job, paths, points=3, examples=64).walks[1]
    torch.manual_seed(job.seed)
    model = job.make_model().train()
    direct_losses = []
    for row in paths[1].points:
        torch.nn.utils.vector_to_parameters(row, model.parameters())
        parts = zip(x.split(16), job.data[1].split(16), strict=True)
        with torch.no_grad():
            losses = [float(job.mean_loss(model, part)[0]) for part in parts]
        direct_losses.append(sum(losses) / len(losses))
    # The examples lie in other batches there: alike, and falling as training does.
    assert walk.losses == pytest.approx(direct_losses, rel=0.25)
    assert walk.losses[-1] < walk.losses[0] / 2


def test_a_model_is_left_as_it_is() -> None:
    job = regression_job(examples=64)
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).train()
    model(job.data[0]).sum().backward()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    found = surface(job, model, dimensions=1, points=7, examples=32, reach=0.5)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(v, kept[n]) for n, v in model.state_dict().items())
    assert model.training
    assert next(model.parameters()).grad is not None
    assert found.losses[3] == pytest.approx(found.centre)
    again = surface(job, model, dimensions=1, points=7, examples=32, reach=0.5)
    assert found.losses.tolist() == again.losses.tolist()


def test_a_data_set_that_draws_gives_one_surface() -> None:
    job = regression_job(examples=64)
    x, y = job.data

    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Any:
            return x[index] + torch.randn(5), y[index]

    model = job.make_model()
    job = replace(job, data=Noisy())
    lines = []
    for seed in range(2):
        torch.manual_seed(seed)
        lines.append(surface(job, model, dimensions=1, points=3).losses)
    assert lines[0].tolist() == lines[1].tolist()


def test_what_cannot_be_drawn_is_refused() -> None:
    job, paths = job_and_paths()
    with pytest.raises(SettingError, match=r"larger than the data set"):
        surface(job, job.make_model(), examples=65)
    with pytest.raises(SettingError, match=r"no trajectories of the job's model"):
        surface(regression_job(width=4), paths)
    with pytest.raises(SettingError, match=r"dimensions=1"):
        surface(job, paths, dimensions=1)
    with pytest.raises(SettingError, match=r"no trajectories"):
        surface(job, [])
    broken = job.make_model()
    next(broken.parameters()).data[0, 0] = math.nan
    with pytest.raises(NotFiniteError, match=r"not finite"):
        surface(job, broken)


@pytest.mark.parametrize(
    ("kind", "dimensions"), [("model", 1), ("model", 2), ("paths", 2)]
)
def test_the_page_is_offline_and_can_be_drawn(
    kind: str, dimensions: Any, tmp_path: Path
) -> None:
    job, paths = job_and_paths()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        first = next(model.parameters())[0, 0]  # the square root is NaN on one side
        return (model(batch[0]) - batch[1]).square().mean() + (first + 1).sqrt()

    odd = replace(job, name="</script><b>", loss=loss)
    model = job.make_model()
    around = model if kind == "model" else paths
    found = surface(odd, around, dimensions=dimensions, points=6, reach=20.0)
    lost = int(np.isnan(found.losses).sum())
    assert kind == "paths" or 0 < lost < found.losses.size
    text = found.save(tmp_path / "page.html").read_text()
    assert "</script><b>" not in text
    assert (f"red: {lost}" in re.sub(r"\s+", " ", text)) == bool(lost)
    markup = text.split('<script type="module">')[0]
    assert not re.search(r"src=|href=|@import|url\(", markup)
    for name, spec in charts(found).items():
        assert f'id="{name}"' in text
        assert "<svg" in vl_convert.vegalite_to_svg(spec)
