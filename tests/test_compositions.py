"""Strata, pairs, tokens, weights: what a batch is made of, and what it estimates."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import reference
import rightbatch as rb
from rightbatch.data.loading.stream import BatchStream
from rightbatch.data.order.allocation import allot, batch_variance, importance_weights
from rightbatch.data.order.distinct import Distinct
from rightbatch.data.order.neyman import StratumMeter
from rightbatch.data.order.tokens import packed_runs, padded_runs
from rightbatch.data.order.weighted import Weighted


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=9),
    st.integers(1, 300),
    st.sampled_from([1, 2, 8]),
    st.data(),
)
def test_allotted_counts_fill_the_batch_and_fit_the_strata(
    sizes: list[int], batch: int, multiple: int, data: st.DataObject
) -> None:
    wanted = data.draw(
        st.lists(st.floats(0.01, 1e6), min_size=len(sizes), max_size=len(sizes))
    )
    have = np.array(sizes)
    if batch < len(sizes) or batch > sum(sizes):
        with pytest.raises(rb.SettingError):
            allot(np.array(wanted), batch, have, multiple)
        return
    counts = allot(np.array(wanted), batch, have, multiple)
    assert counts.sum() == batch
    assert (counts >= 1).all()
    assert (counts <= have).all()
    free = (counts > 1) & (counts < have)
    if multiple == 1 and free.sum() > 1:
        scale = counts[free] / np.array(wanted)[free]
        slack = 1.01 / np.array(wanted)[free]  # rounding, one either way
        assert (scale.max() - slack[scale.argmax()]) <= (
            scale.min() + slack[scale.argmin()]
        )


def test_neyman_beats_every_other_allotment() -> None:
    sizes, stds = np.array([50, 300, 650]), np.array([9.0, 1.0, 0.2])
    best = batch_variance(sizes, allot(sizes * stds, 24, sizes), stds)
    for a in range(1, 23):
        for b in range(1, 24 - a):
            counts = np.array([a, b, 24 - a - b])
            assert best <= batch_variance(sizes, counts, stds) * 1.001


def rare_class(length: int = 20_000, seed: int = 0) -> tuple[Any, Any]:
    """A logistic regression with 1 % positives."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 6, generator=generator)
    score = x @ torch.tensor([1.5, -1.0, 0.5, 0.0, 0.0, 1.0]) - 6.3
    y = (torch.rand(length, generator=generator) < torch.sigmoid(score)).float()
    return torch.cat([x, torch.ones(length, 1)], 1), y


def gradients(x: Any, y: Any, weight: Any) -> Any:
    """Each example's own gradient, (examples, parameters)."""
    return (torch.sigmoid(x @ weight) - y)[:, None] * x


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
    assert "balanced" in stream.composition.name


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
    assert first.split() == [
        "stratum",
        "examples",
        "in",
        "a",
        "batch",
        "weight",
        "seen",
        "in",
        "an",
        "epoch",
    ]
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


def test_strata_of_numbers_and_of_several_labels() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    strata = rb.data.Strata.by_quantiles(values, 10)
    assert strata.sizes.tolist() == [100] * 10
    assert rb.data.Strata.by_quantiles(np.zeros(50), 10).sizes.tolist() == [50]
    hot = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]])
    by_label = rb.data.Strata.by_rarest_label(hot)
    assert by_label.labels == [-1, 0, 1, 2]
    assert by_label.sizes.tolist() == [1, 2, 1, 1]


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
    strata.observe({False: 1.0, True: 27.0})
    assert rare(stream) == 38
    resumed = rb.BatchStream(data, 50, order=rb.data.Strata(y, "neyman"))
    resumed.load_state_dict(stream.state_dict())
    assert rare(resumed) == 38
    stream.close()


def test_the_meter_measures_each_strata_s_noise() -> None:
    """Against every example's own gradient at the same weights: within 12 %."""
    x, y = rare_class()
    model = torch.nn.Linear(7, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, 0, 0, 0, 0, 0.2, -4.0]]))
    own = gradients(x, y, model.weight.detach()[0])
    truth = [float(own[y == c].var(0).sum()) ** 0.5 for c in (0.0, 1.0)]
    strata = rb.data.Strata(y, "neyman", multiple=2)
    meter = StratumMeter(model, strata, overhead=math.inf)
    stream = rb.BatchStream((x, y), 64, order=strata)
    sums, counts = [0.0, 0.0], [0, 0]
    for step in stream.steps():
        for micro in step:
            logits = model(micro.data[0])[:, 0]
            losses = functional.binary_cross_entropy_with_logits(
                logits, micro.data[1], reduction="none"
            )
            before = meter.measured % 2
            meter._sums, meter._weights, meter._tried = [0.0, 0.0], [0.0, 0.0], 0
            meter(losses, micro.groups)
            if (std := meter.stds[before]) is not None:
                sums[before] += std**2
                counts[before] += 1
    found = [(s / n) ** 0.5 for s, n in zip(sums, counts, strict=True)]
    assert found == pytest.approx(truth, rel=0.12)


def test_the_meter_forgets_and_measures_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strata = rb.data.Strata([0, 0, 1, 1], "neyman")
    meter = StratumMeter([torch.nn.Parameter(torch.zeros(1))], strata)
    losses, groups = torch.zeros(4), torch.tensor([0, 0, 1, 1])
    monkeypatch.setattr(meter, "_trace", lambda losses, members: 4.0)
    for _ in range(6):
        meter(losses, groups)
    assert meter.measured == 4  # from the third call on, on loan: two rounds
    meter._overhead = math.inf
    meter._next = 0
    for _ in range(200):
        meter(losses, groups)
    assert meter.stds == pytest.approx([2.0, 2.0])
    monkeypatch.setattr(meter, "_trace", lambda losses, members: 100.0)
    for _ in range(200):
        meter(losses, groups)
    assert meter.stds == pytest.approx([10.0, 10.0], rel=0.01)


ORDERS = {
    "shuffled": lambda: "shuffled",
    "replacement": lambda: "replacement",
    "poisson": lambda: "poisson",
    "strata": lambda: rb.data.Strata(np.arange(60) % 7 == 0, {True: 3}),
    "pairs": lambda: rb.data.Pairs(np.arange(60) // 5, each=2),
    "weighted": lambda: Weighted(1.0 + np.arange(60)),
    "distinct": lambda: Distinct(np.arange(60) // 2),
    "tokens": lambda: rb.data.Tokens(1 + np.arange(60) % 9, 20),
    "tokens of a window": lambda: rb.data.Tokens(1 + np.arange(60) % 9, 20, window=16),
}


@pytest.mark.parametrize("name", ORDERS)
def test_every_draw_has_a_randomness_of_its_own(name: str) -> None:
    """However often an example comes, it is augmented anew; and again the same."""
    drawn = []
    for _ in range(2):
        stream = rb.BatchStream((torch.arange(60),), 12, order=ORDERS[name]())
        seeds: list[int] = []
        while stream.step < 40:
            for step in stream.steps():
                list(step)
                seeds += step._plan.cut.seeds.tolist()
        assert len(set(seeds)) == len(seeds)
        drawn.append(seeds)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (rb.data.Pairs([0] * 4 + [1] * 6), rb.data.Pairs([0] * 6 + [1] * 4)),
        (rb.data.Pairs([0, 1] * 5), rb.data.Pairs([0] * 5 + [1] * 5)),
        (
            rb.data.Strata([0] * 5 + [1] * 5),
            rb.data.Strata([0] * 5 + [1] * 5, multiple=2),
        ),
        (Weighted(np.arange(1, 11)), Weighted(np.arange(2, 12))),
        (Distinct(np.arange(10) // 2), Distinct(np.arange(10) % 5)),
        (rb.data.Tokens([3] * 10, 9), rb.data.Tokens([3] * 9 + [4], 9)),
        (rb.data.Tokens([3] * 10, 9, window=4), rb.data.Tokens([3] * 10, 9)),
    ],
)
def test_a_state_of_another_composition_is_refused(one: Any, other: Any) -> None:
    data = (torch.arange(10),)
    state = rb.BatchStream(data, 2, order=one).state_dict()
    with pytest.raises(rb.SettingError, match="other labels, lengths or settings"):
        rb.BatchStream(data, 2, order=other).load_state_dict(state)
    wrong = state | {"extra": [*state["extra"], 10**9, -1]}
    with pytest.raises(rb.SettingError, match="extra"):
        rb.BatchStream(data, 2, order=one).load_state_dict(wrong)


def test_quantiles_keep_ties_together_at_either_end() -> None:
    positive = np.arange(1, 16)
    for values in (
        np.concatenate([np.zeros(85), positive]),
        np.concatenate([np.full(85, 99.0), positive]),
    ):
        sizes = sorted(rb.data.Strata.by_quantiles(values, 10).sizes.tolist())
        assert sizes[-1] == 85
        assert len(sizes) >= 2
    even = rb.data.Strata.by_quantiles(np.random.default_rng(0).normal(size=1000), 10)
    assert even.sizes.tolist() == [100] * 10


def test_poisson_steps_are_those_of_their_place() -> None:
    walked = rb.BatchStream((torch.arange(50),), 10, order="poisson")
    list(walked)
    jumped = rb.BatchStream((torch.arange(50),), 10, order="poisson")
    jumped.set_epoch(1)
    assert next(iter(walked))[0].tolist() == next(iter(jumped))[0].tolist()


def test_the_meter_keeps_to_its_overhead_and_feeds_the_strata() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    x, y = rare_class()
    model = torch.nn.Linear(7, 1)
    strata = rb.data.Strata(y, "neyman", multiple=2)
    meter = StratumMeter(model, strata, overhead=0.1, clock=clock)
    stream = rb.BatchStream((x, y), 64, order=strata)
    for step in stream.steps():
        for micro in step:
            now[0] += 0.003
            losses = functional.binary_cross_entropy_with_logits(
                model(micro.data[0])[:, 0], micro.data[1], reduction="none"
            )
            meter(losses, micro.groups)
    # A measurement takes 1 ms, a step 4 to 5: one in 2 to 3 steps is 10 %.
    assert 0.05 < meter.measured * 0.001 / now[0] < 0.12
    assert strata.version > 1


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
            for step in stream.steps():
                for micro in step:
                    inputs, labels = micro.data
                    losses = functional.binary_cross_entropy_with_logits(
                        model(inputs)[:, 0], labels, reduction="none"
                    )
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


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=15),
    st.integers(2, 4),
    st.lists(st.integers(1, 6), min_size=1, max_size=30),
    st.integers(0, 3),
)
@pytest.mark.filterwarnings("ignore:.*classes have fewer")
def test_pairs_are_p_classes_of_k_examples_each_class_once_a_lap(
    sizes: list[int], each: int, wanted: list[int], seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    classes = [c for c, n in enumerate(sizes) if n >= each]
    if not classes:
        with pytest.raises(rb.SettingError, match="no class has"):
            rb.data.Pairs(labels, each=each)
        return
    data = (torch.arange(len(labels)),)
    wanted = [min(w, len(classes)) for w in wanted]
    stream = rb.BatchStream(
        data, each * wanted[0], order=rb.data.Pairs(labels, each=each), seed=seed
    )
    visits: list[int] = []
    seen: dict[int, list[int]] = {c: [] for c in classes}
    loop = (s for _ in range(10**9) for s in stream.steps())
    for number in wanted:
        stream.batch_size = each * number
        if len(visits) % 2:  # a state goes on in the same way
            state = stream.state_dict()
            stream = rb.BatchStream(
                data, each, order=rb.data.Pairs(labels, each=each), seed=seed
            )
            stream.load_state_dict(state)
            stream.batch_size = each * number
            loop = (s for _ in range(10**9) for s in stream.steps())
        (micro,) = next(loop)
        index = micro.indices.numpy()
        assert len(set(index.tolist())) == each * number  # no duplicates
        groups = labels[index].reshape(number, each)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == number
        assert (micro.groups.numpy() == labels[index]).all()
        visits += groups[:, 0].tolist()
        for i in index.tolist():
            seen[int(labels[i])].append(i)
    counts = np.bincount(visits, minlength=len(sizes))[classes]
    assert counts.max() - counts.min() <= 1
    for c in classes:  # all of a class before any comes again but to fill up K
        turn = -(-sizes[c] // each) * each
        for first in range(0, len(seen[c]) - turn + 1, turn):
            assert len(set(seen[c][first : first + turn])) == sizes[c]


def test_pairs_stay_whole_on_ranks_and_in_micro_batches() -> None:
    labels = np.repeat(np.arange(40), 5)
    taken = []
    for rank in range(3):
        stream = rb.BatchStream(
            (torch.from_numpy(labels),),
            40,
            order=rb.data.Pairs(labels, each=4),
            rank=rank,
            world_size=3,
            micro_batch=8,
        )
        for micro in next(stream.steps()):
            found = micro.data[0].reshape(-1, 4)
            assert (found == found[:, :1]).all()
            if micro.share:
                taken += micro.indices.tolist()
    assert len(taken) == len(set(taken)) == 40


def test_small_classes_are_said_or_repeated() -> None:
    labels = [0, 0, 0, 1, 2, 2]
    with pytest.warns(UserWarning, match="1 of 3 classes have fewer than 2"):
        pairs = rb.data.Pairs(labels, each=2)
    assert pairs.classes == 2
    stream = rb.BatchStream(
        (torch.tensor(labels),), 6, order=rb.data.Pairs(labels, small="repeat")
    )
    assert sorted(next(iter(stream))[0].tolist()) == [0, 0, 1, 1, 2, 2]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=120),
    st.integers(50, 300),
    st.booleans(),
    st.sampled_from(["examples", "tokens", "runs"]),
    st.lists(st.integers(1, 400), min_size=1, max_size=20),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_tokens_fit_the_budget_and_lose_nothing(
    lengths: list[int],
    budget: int,
    packed: bool,
    count: Any,
    sizes: list[int],
    world: int,
    window: int | None,
) -> None:
    have = np.array(lengths)
    if count == "tokens":
        sizes = [max(s, max(lengths)) for s in sizes]
    orders = [
        rb.data.Tokens(have, budget, packed=packed, count=count, window=window)
        for _ in range(world)
    ]
    streams = [
        rb.BatchStream(
            (torch.arange(len(have)),), sizes[0], order=o, rank=r, world_size=world
        )
        for r, o in enumerate(orders)
    ]
    seen: list[int] = []
    order = reference.epochs(len(have), 0, 2)
    for epoch in range(2):
        loops = [s.steps() for s in streams]
        number = 0
        while streams[0].epoch == epoch:
            size = sizes[number % len(sizes)]
            number += 1
            for s in streams:
                s.batch_size = size
            steps = [next(loop, None) for loop in loops]
            if steps[0] is None:
                break
            parts = [list(s) for s in steps if s is not None]
            assert len({len(p) for p in parts}) == 1
            micros = [m for p in parts for m in p]
            assert sum(m.share for m in micros) == pytest.approx(world)
            assert sum(m.token_share or 0.0 for m in micros) == pytest.approx(world)
            real = [m for m in micros if m.share]
            for m in real:
                mine = have[m.indices.numpy()]
                cost = mine.sum() if packed else mine.max() * len(mine)
                assert cost <= budget
            index = [i for m in real for i in m.indices.tolist()]
            if count == "examples":
                left = len(have) - len(seen) % len(have)
                assert len(index) == min(size, left)
            if count == "tokens":
                assert have[index].sum() <= size
            if window is None and count != "runs":  # a random batch, only sorted
                at = len(seen)
                assert sorted(index) == sorted(order[at : at + len(index)])
            seen += index
    assert len(seen) == 2 * len(have)
    assert sorted(seen[: len(have)]) == list(range(len(have)))


def test_packing_is_best_fit_and_padding_is_small() -> None:
    assert packed_runs([1, 2, 3, 5, 7], 8) == [[4, 0], [3, 2], [1]]
    assert padded_runs([1, 2, 3, 5, 7], 8) == [[0, 1], [2], [3], [4]]
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5, 1, 20_000), 16, 2048).astype(int)
    waste = {}
    for packed in (False, True):
        order = rb.data.Tokens(lengths, 16_384, packed=packed, count="runs")
        stream = rb.BatchStream((torch.arange(20_000),), 1, order=order)
        real = spent = 0
        for step in stream.steps():
            (micro,) = step
            mine = lengths[micro.indices.numpy()]
            real += mine.sum()
            spent += 16_384 if packed else mine.max() * len(mine)
        waste[packed] = 1 - real / spent
    assert waste[False] < 0.06
    assert waste[True] < 0.02


def lognormal(examples: int) -> np.ndarray:
    """Lengths from 4 to 2048, 90 at the median."""
    generator = np.random.default_rng(0)
    return np.clip(generator.lognormal(4.5, 1, examples), 4, 2048).astype(int)


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_of_tokens_is_a_random_batch_and_one_of_a_window_is_not(
    packed: bool,
) -> None:
    """Noise of batch means of log length: 195 batches, standard error 10 %."""
    lengths = lognormal(50_000)
    data = (torch.arange(50_000),)
    found: dict[int | None, float] = {}
    told: dict[int | None, str] = {}
    for window in (None, 8192):
        order = rb.data.Tokens(lengths, 4096, packed=packed, window=window)
        stream = rb.BatchStream(data, 256, order=order)
        audit = rb.audit(stream, lengths=lengths)
        assert audit.length_noise is not None
        found[window], told[window] = audit.length_noise.value, str(audit)
    assert found[None] == pytest.approx(1, abs=0.4)
    assert "lengths are not mixed" not in told[None]
    assert found[8192] > 30
    assert "note: lengths are not mixed" in told[8192]


@pytest.mark.parametrize("count", ["examples", "tokens", "runs"])
@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_get_like_numbers_of_tokens(count: Any, window: Any, world: int) -> None:
    lengths = lognormal(20_000)
    size = {"examples": 256, "tokens": 32_000, "runs": 2 * world}[count]
    excess = []
    streams = [
        rb.BatchStream(
            (torch.arange(20_000),),
            size,
            order=rb.data.Tokens(lengths, 4096, count=count, window=window),
            rank=rank,
            world_size=world,
        )
        for rank in range(world)
    ]
    for steps in zip(*(s.steps() for s in streams), strict=True):
        tokens = [
            sum(lengths[m.indices.numpy()].sum() for m in step if m.share)
            for step in steps
        ]
        excess.append(max(tokens) / np.mean(tokens) - 1)
    assert np.mean(excess) < 0.1  # dealt in turn: 0.11 to 0.29
    found = rb.audit(streams[0], lengths=lengths)
    assert found.token_balance == pytest.approx(np.mean(excess), abs=0.03)


def test_token_shares_give_the_mean_over_all_tokens() -> None:
    lengths = np.array([3, 9, 4, 4, 8, 2, 5, 7])
    losses = [torch.rand(n) for n in lengths]
    order = rb.data.Tokens(lengths, 12)
    total = []
    for rank in range(2):
        stream = rb.BatchStream(
            (torch.arange(8),), 8, order=order, rank=rank, world_size=2
        )
        parts = [
            torch.cat([losses[i] for i in m.indices]).mean() * (m.token_share or 0.0)
            for m in next(stream.steps())
        ]
        total.append(sum(parts))
    assert sum(total) / 2 == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)


def test_weighted_draws_are_unbiased_or_of_the_weighted_objective() -> None:
    """400,000 draws: frequencies within 5 standard errors, weights undo them."""
    weights = np.array([1.0, 2.0, 3.0, 10.0])
    data = (torch.arange(4),)
    stream = rb.BatchStream(data, 400_000, order=Weighted(weights), seed=1)
    (index,), w = next(iter(stream))
    share = np.bincount(index.numpy()) / 400_000
    expected = weights / weights.sum()
    error = np.sqrt(expected * (1 - expected) / 400_000)
    assert (np.abs(share - expected) / error).max() < 5
    means = [float((w * (index == i)).mean()) for i in range(4)]
    assert means == pytest.approx([0.25] * 4, abs=0.005)
    plain = rb.BatchStream(data, 8, order=Weighted(weights, "weighted"))
    assert len(next(iter(plain))) == 1  # no weights


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(20, 50)), min_size=4),
    st.integers(1, 2),
    st.lists(st.integers(1, 8), min_size=1, max_size=25),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_distinct_batches_share_no_key_and_lose_nothing(
    rows: list[tuple[int, int]],
    columns: int,
    sizes: list[int],
    world: int,
    seed: int,
) -> None:
    keys = np.array(rows)[:, :columns]
    own = [set(row.tolist()) for row in keys]
    most = len(rows) // max(sum(k in one for one in own) for k in set().union(*own))
    sizes = [min(size, most) for size in sizes]
    data = (torch.arange(len(rows)),)

    def streams(ranks: int) -> list[BatchStream]:
        return [
            BatchStream(
                data, 1, order=Distinct(keys), seed=seed, rank=r, world_size=ranks
            )
            for r in range(ranks)
        ]

    made, found = streams(world), []
    for number, size in enumerate(sizes):
        if number == len(sizes) // 2:  # a state goes on, on other ranks
            state = made[-1].state_dict()
            made = streams(1)
            made[0].load_state_dict(state)
        batch = []
        for stream in made:
            stream.batch_size = size
            for micro in next(stream.steps()):
                batch += micro.indices.tolist() if micro.share else []
        assert sum(len(own[i]) for i in batch) == len(
            set().union(*(own[i] for i in batch))
        )
        found.append(sorted(batch))
    epochs = 3 + 2 * sum(sizes) // len(rows)
    order = reference.epochs(len(rows), seed, epochs)
    slow = reference.distinct_batches(order, own, sizes)
    assert found == [sorted(batch) for batch in slow]


def test_several_keys_that_stand_in_each_others_way_make_short_steps() -> None:
    triangles = np.array([[0, 1], [1, 2], [0, 2], [3, 4], [4, 5], [3, 5]])
    pairs = np.array(
        [
            [3 * n + a, 1000 + 3 * n + b]
            for n in range(40)
            for a, b in ((0, 0), (1, 0), (1, 1))
        ]
    )
    for keys, size in ((triangles, 3), (pairs, 56), (pairs, 60)):
        stream = BatchStream((torch.arange(len(keys)),), size, order=Distinct(keys))
        seen: list[int] = []
        waiting = 0
        with pytest.warns(UserWarning, match="some steps are shorter"):
            while stream.step < 300:
                for step in stream.steps():
                    (micro,) = step
                    rows = keys[micro.indices.numpy()]
                    assert len(np.unique(rows)) == rows.size
                    seen += micro.indices.tolist()
                    waiting = max(waiting, len(stream.state_dict()["extra"]))
        assert waiting <= 16 * size
        times = np.bincount(seen, minlength=len(keys))
        assert times.min() > 0.5 * times.mean()  # nobody waits for ever


def test_short_steps_are_counted() -> None:
    for seed in range(40):
        numbers = np.random.default_rng(seed)
        keys = np.stack([numbers.choice(10, 3, replace=False) for _ in range(60)])
        order = Distinct(keys)
        stream = BatchStream((torch.arange(60),), order._largest, order=order)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(stream) == sum(1 for _ in stream)


def test_a_jump_leaves_nobody_waiting() -> None:
    stream = BatchStream((torch.arange(40),), 4, order=Distinct(np.arange(40) // 10))
    for _ in range(3):
        list(next(stream.steps()))
    stream.set_epoch(1)
    assert stream.state_dict()["extra"] == []
    seen = [i for s in stream.steps() for m in s for i in m.indices.tolist()]
    assert len(seen) == 40
    assert np.bincount(seen).max() <= 2


def test_steps_are_counted_where_the_batch_size_is_in_tokens_or_runs() -> None:
    lengths = lognormal(3000)
    for count, size in (("tokens", 9000), ("runs", 3)):
        order = rb.data.Tokens(lengths, 4096, count=count)
        stream = rb.BatchStream((torch.arange(3000),), size, order=order)
        expected = len(stream)
        for number, step in enumerate(stream.steps()):
            list(step)
            if number == 4:
                assert stream.steps_left == expected - 5
                assert len(stream) == expected
        assert stream.step == expected


def test_a_key_of_every_other_example_waits_and_does_not_pile_up() -> None:
    """Half of a batch's room: 32 of 1000 examples have the same key, B is 16."""
    keys = np.arange(1000)
    keys[:32] = -1
    stream = BatchStream((torch.arange(1000),), 16, order=Distinct(keys))
    waiting, seen = [], []
    for _ in range(20):  # epochs
        for step in stream.steps():
            (micro,) = step
            seen += micro.indices.tolist()
            assert (micro.indices < 32).sum() <= 1
            waiting.append(len(stream.state_dict()["extra"]))
    times = np.bincount(seen, minlength=1000)
    assert len(seen) >= 20_000
    assert max(waiting) <= 32
    assert (times.min(), times.max()) in ((20, 20), (19, 21), (20, 21), (19, 20))


def test_importance_weights_average_to_one() -> None:
    sizes, counts = np.array([10, 90]), np.array([5, 5])
    assert importance_weights(sizes, counts).tolist() == [0.2, 1.8]


def _measured_too_late() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    meter = StratumMeter([weight], rb.data.Strata([0, 0, 1, 1], "neyman"), math.inf)
    losses = (weight * torch.ones(4)).square()
    losses.sum().backward()
    for _ in range(4):
        meter(losses, torch.tensor([0, 0, 1, 1]))


def _stream() -> Any:
    return rb.BatchStream((torch.ones(2),), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Weighted([1.0, -1.0]), "the smallest is -1"),
        (lambda: Weighted([1.0, math.nan]), "1 NaN"),
        (lambda: Weighted([0.0, 0.0]), "all are zero"),
        (lambda: Weighted([1.0, 0.0]), "weight 0"),
        (lambda: rb.data.Strata([[1, 2]]), "one axis"),
        (lambda: rb.data.Strata([]), "one axis"),
        (lambda: rb.data.Strata([0, 1], "equal"), "proportional, neyman"),
        (lambda: rb.data.Strata([0, 1], {2: 1}), "no example has label 2"),
        (lambda: rb.data.Strata([0, 1], {1: 2}), "it has 1 in all"),
        (lambda: rb.data.Strata([0.0, math.nan]), "NaN"),
        (lambda: rb.data.Strata([0, 1]).observe([1, 1]), "no effect"),
        (lambda: rb.data.Strata([0, 1], "neyman").observe([1, -1]), "smallest is -1"),
        (lambda: rb.data.Strata([0, 1], "neyman").observe([0, 0]), "all are zero"),
        (lambda: rb.data.Strata([0, 1], "neyman").observe([1]), "shape"),
        (lambda: rb.data.Strata([0, 1], "neyman").observe({0: 1.0}), "nothing of 1"),
        (lambda: rb.data.Strata([None, 1, "a"]), "of one kind"),
        (lambda: rb.data.Strata.by_quantiles([]), "one axis"),
        (lambda: rb.data.Strata.by_quantiles([1.0], 0), "at least 1"),
        (lambda: rb.data.Strata.by_rarest_label([[0.5, 0.0]]), "0.5.* at example 0"),
        (lambda: rb.data.Strata.by_rarest_label([[math.nan, 0.0]]), "zeros and ones"),
        (lambda: StratumMeter([], _stream()), "for strata"),
        (
            lambda: rb.BatchStream(
                (torch.arange(9),), 4, order=rb.data.Strata(np.arange(9) / 7)
            ),
            "by_quantiles",
        ),
        (lambda: rb.data.Strata.by_quantiles([1, math.inf]), "the first is example 1"),
        (lambda: rb.data.Pairs([0, 0, 1, 1], each=1), "at least 2"),
        (lambda: Distinct([]), "an axis of examples"),
        (lambda: Distinct(["a", None]), "of one kind"),
        (lambda: Distinct([["a"], ["b", "c"]]), "as many keys"),
        (lambda: rb.data.Strata.by_rarest_label([[0, 1], [1]]), "as many labels"),
        (lambda: _measured_too_late(), "before the backward pass"),
        (
            lambda: rb.BatchStream((torch.arange(4),), 3, order=Distinct([0, 0, 1, 2])),
            "one key is in 2 of 4",
        ),
        (lambda: rb.data.Tokens([5, 60], 50), "longer than the budget"),
        (lambda: rb.data.Tokens([5, 0], 50), "empty"),
        (
            lambda: rb.BatchStream(
                (torch.arange(4),), 3, order=rb.data.Pairs([0, 0, 1, 1], each=2)
            ),
            "no whole number",
        ),
        (
            lambda: rb.BatchStream(
                (torch.arange(4),), 6, order=rb.data.Pairs([0, 0, 1, 1], each=2)
            ),
            "needs 3 classes",
        ),
        (
            lambda: rb.BatchStream(
                (torch.arange(3),), 2, order=rb.data.Strata([0, 1, 2])
            ),
            "one of each of 3 strata",
        ),
        (
            lambda: rb.BatchStream(
                (torch.arange(2),), 4, order=rb.data.Tokens([5, 9], 9, count="tokens")
            ),
            "longest example",
        ),
    ],
)
def test_what_cannot_be_composed_is_refused(make: Any, message: str) -> None:
    with pytest.raises(rb.SettingError, match=message):
        make()


def test_a_state_of_other_strata_is_refused() -> None:
    data = (torch.arange(4),)
    state = rb.BatchStream(data, 2, order=rb.data.Strata([0, 1, 0, 1])).state_dict()
    other = rb.BatchStream(data, 2, order=rb.data.Strata([0, 0, 1, 1]))
    with pytest.raises(rb.SettingError, match="other labels"):
        other.load_state_dict(state)
