"""Stratified batches: unbiased, as quiet as their law, and explained."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb
from rare_class import gradients, losses_of, rare_class
from rightbatch.data.order.allocation import batch_variance


@pytest.mark.parametrize(
    "counts", ["proportional", {1: 1}, {1: 8}, {1: 64}, "neyman"], ids=str
)
def test_a_stratified_batch_is_unbiased_and_as_quiet_as_its_law(counts: Any) -> None:
    """3000 batches of 128: z of each of 7 coordinates; variance within 15 %."""
    x, y = rare_class()
    weight = torch.zeros(7, dtype=x.dtype)
    weight[-1] = -4.0
    own = gradients(x, y, weight).double()
    strata = rb.data.Strata(y, counts)
    stds = [float(own[y == c].var(0).sum()) ** 0.5 for c in (0.0, 1.0)]
    if counts == "neyman":
        strata.observe(stds)
    stream = rb.BatchStream((own, y), 128, order=strata, seed=1)
    found = []
    while stream.step < 3000:
        for (g, labels), w in stream:
            found.append((w[:, None] * g).mean(0))
            assert int(labels.sum()) == strata.counts_at(128, stream._cursor)[1]
            if stream.step >= 3000:
                break
    made = torch.stack(found)
    error = made.std(0) / math.sqrt(len(made)) + 1e-7  # of the bias: float32 weights
    assert ((made.mean(0) - own.mean(0)) / error).abs().max() < 4
    law = batch_variance(
        strata.sizes, strata.counts_at(128, stream._cursor), np.array(stds)
    )
    assert float(made.var(0).sum()) == pytest.approx(law, rel=0.15)
    uniform = float(own.var(0).sum()) / 128
    if counts == "neyman":
        assert law < uniform / 10


def test_balanced_has_no_weights_and_says_another_objective() -> None:
    _, y = rare_class()
    stream = rb.BatchStream((y,), 64, order=rb.data.Strata(y, "balanced"))
    (labels,) = next(iter(stream))  # no weights
    assert int(labels.sum()) == 32
    assert "balanced" in stream.order.name


def test_a_small_stratum_is_capped_and_goes_round_without_loss() -> None:
    y = np.array([1] * 5 + [0] * 995)
    strata = rb.data.Strata(y, "balanced")
    assert strata.counts_at(64).tolist() == [59, 5]
    stream = rb.BatchStream((torch.from_numpy(y),), 64, order=rb.data.Strata(y, {1: 2}))
    rare = [i for s in stream.steps() for m in s for i in m.indices[m.groups == 1]]
    for lap in range(len(rare) // 5):
        assert sorted(map(int, rare[5 * lap : 5 * lap + 5])) == list(range(5))


@pytest.mark.parametrize("counts", [{"rare": 8}, "proportional", "balanced"])
def test_what_strata_explain_is_what_comes(counts: Any) -> None:
    """Counted over an epoch of 20 batches of 64: 1,280 draws."""
    labels = np.array(["often"] * 1240 + ["rare"] * 40)
    strata = rb.data.Strata(labels, counts)
    stream = rb.BatchStream((torch.arange(1280),), 64, order=strata)
    drawn = np.concatenate([step.indices for s in stream.steps() for step in s])
    first, *lines = strata.explain(64).splitlines()
    assert first.split()[:2] == ["stratum", "examples"]
    for line, label in zip(lines, ("often", "rare"), strict=True):
        name, examples, held, weight, seen, times = line.split()
        of_it = labels[drawn] == label
        assert (name, times) == (label, "times")
        assert int(examples.replace(",", "")) == (labels == label).sum()
        assert int(held) == of_it.sum() / 20
        assert float(seen) == pytest.approx(
            of_it.sum() / int((labels == label).sum()), rel=5e-3
        )
        share = (labels == label).mean() * 64 / int(held)
        assert float(weight) == pytest.approx(
            1 if counts == "balanced" else share, rel=5e-3
        )


def test_many_strata_are_explained_briefly() -> None:
    """Those that come most often, in their order."""
    labels = np.repeat(np.arange(50), np.arange(10, 60))
    text = rb.data.Strata(labels, "balanced").explain(200)
    assert len(text.splitlines()) == 22
    assert text.splitlines()[1].split()[:2] == ["0", "10"]
    assert text.endswith("and 30 seen no more often")


@pytest.mark.parametrize("cuts", [1, 2, 4, 8])
def test_any_run_of_a_batch_has_nearly_its_composition(cuts: int) -> None:
    y = np.repeat([0, 1, 2], [500, 300, 200])
    stream = rb.BatchStream((torch.from_numpy(y),), 80, order=rb.data.Strata(y))
    (labels,), _ = next(iter(stream))
    for run in labels.chunk(cuts):
        found = np.bincount(run.numpy(), minlength=3) * cuts
        assert np.abs(found - [40, 24, 16]).max() <= cuts


def test_observed_noise_holds_at_the_next_step_and_travels_with_the_state() -> None:
    y = torch.arange(1000) % 10 == 0
    data = (y,)

    def rare(stream: Any) -> int:
        return int(next(iter(stream))[0][0].sum())

    strata = rb.data.Strata(y, "neyman")
    stream = rb.BatchStream(data, 50, order=strata, num_workers=2)
    assert rare(stream) == 5
    strata.observe([1.0, 9.0])
    assert rare(stream) == 25
    strata.observe([1.0, 27.0])
    assert rare(stream) == 38
    resumed = rb.BatchStream(data, 50, order=rb.data.Strata(y, "neyman"))
    resumed.load_state_dict(stream.state_dict())
    assert rare(resumed) == 38
    stream.close()


def test_noise_observed_after_the_last_step_is_in_the_state() -> None:
    y = torch.arange(1000) % 10 == 0
    strata = rb.data.Strata(y, "neyman")
    stream = rb.BatchStream((y,), 50, order=strata)
    next(iter(stream))
    strata.observe([1.0, 9.0])
    early = stream.state_dict()
    json.dumps(early)
    expected = next(iter(stream))[0][0]
    other = rb.BatchStream((y,), 50, order=rb.data.Strata(y, "neyman"))
    other.load_state_dict(early)
    assert torch.equal(next(iter(other))[0][0], expected)
    strata.observe([1.0, 27.0])
    next(iter(stream))
    stream.load_state_dict(early)  # back, in the same process
    assert torch.equal(next(iter(stream))[0][0], expected)


def test_neyman_without_observations_is_said_once() -> None:
    y = [0] * 900 + [1] * 100
    stream = rb.BatchStream((torch.tensor(y),), 5, order=rb.data.Strata(y, "neyman"))
    with pytest.warns(UserWarning, match="noise of the strata is not known") as told:
        list(stream)
    assert len(told) == 1
    observed = rb.data.Strata(y, "neyman")
    observed.observe([1.0, 2.0])
    list(rb.BatchStream((torch.tensor(y),), 5, order=observed))
    list(rb.BatchStream((torch.tensor(y),), 5, order=rb.data.Strata(y)))


def test_the_monitor_knows_the_composition() -> None:
    """Fixed weights, 600 steps: stratified noise as computed, far below uniform."""
    x, y = rare_class()
    model = torch.nn.Linear(7, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -0.2, 0, 0, 0, 0.2, -4.0]]))
    own = gradients(x, y, model.weight.detach()[0]).double()
    square = float(own.mean(0).square().sum())
    stds = np.array([float(own[y == c].var(0).sum()) ** 0.5 for c in (0.0, 1.0)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = {}
    for name in ("stratified", "uniform"):
        strata = rb.data.Strata(y, {1: 64})
        order: Any = strata if name == "stratified" else "shuffled"
        stream = rb.BatchStream((x, y), 128, order=order, seed=2)
        monitor = rb.NoiseMonitor(model, optimizer, math.inf, stream=stream)
        while stream.step < 600:
            for losses, micro in losses_of(model, stream):
                (micro.weights * losses).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        found[name] = monitor.read(window=600 * 128).noise_scale.value
        monitor.close()
    counts = np.array([64, 64])
    truth = 128 * batch_variance(np.array([(y == 0).sum(), y.sum()]), counts, stds)
    assert found["stratified"] == pytest.approx(truth / square, rel=0.15)
    assert found["uniform"] == pytest.approx(float(own.var(0).sum()) / square, rel=0.25)
    assert found["uniform"] > 5 * found["stratified"]


def test_the_monitor_refuses_what_it_cannot_compare() -> None:
    x, y = rare_class(2000)
    model = torch.nn.Linear(7, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    stream = rb.BatchStream((x, y), 64, order=rb.data.Strata(y, {1: 1}))
    monitor = rb.NoiseMonitor(model, optimizer, math.inf, stream=stream)
    for (inputs, _), w in stream:
        (w * model(inputs)[:, 0]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = monitor.read()
    assert found.steps == 0
    assert "equal composition" in found.problem
