"""Advice from published laws: where it speaks, from what, and where it is silent."""

from __future__ import annotations

import math
from typing import Any

import pytest

import rightbatch as rb
from rightbatch.cluster import batch_laws as laws
from rightbatch.cluster.advice import LAWS, POINTS, Advice, advise
from rightbatch.cluster.published import BEYOND, ZHANG, language_model, published


def value(advice: Advice, number: str, source: str) -> float:
    (prior,) = (p for p in advice.priors if (p.number, p.source) == (number, source))
    assert prior.estimate is not None
    assert prior.estimate.low <= prior.estimate.value <= prior.estimate.high
    return prior.estimate.value


def test_laws_say_what_their_papers_print() -> None:
    advice = advise(parameters=1e9, tokens=1e11)  # the largest run of Step Law
    assert value(advice, laws.BEST, laws.LI) == pytest.approx(1.1e6, rel=0.02)
    assert value(advice, laws.RATE, laws.LI) == pytest.approx(1.63e-3, rel=0.01)
    # 1e20 FLOPs: 1.02 M tokens at a rate of 9.86e-4 are the check of DeepSeek's fit.
    advice = advise(parameters=1e9, tokens=1e20 / 6e9)
    assert value(advice, laws.BEST, laws.DEEPSEEK) == pytest.approx(1.02e6, rel=0.01)
    assert value(advice, laws.RATE, laws.DEEPSEEK) == pytest.approx(9.86e-4, rel=0.01)
    zhang = value(advice, laws.CRITICAL, ZHANG)
    assert zhang == pytest.approx(512 * language_model(1e9).critical_batch)
    advice = advise(parameters=7e9, tokens=3e11)
    (merrill,) = (p.estimate for p in advice.priors if p.source == laws.MERRILL)
    assert str(merrill) == "1.19e+07 tokens (8.39e+06 to 1.68e+07)"


def test_critical_batches_of_different_people_agree() -> None:
    """Along 20 tokens a parameter, and with a workload that none was fitted to.

    MLPerf's llama31_8b reached its target on 1.3e5 sequences of 8,192 tokens, half the
    least data of Bergsma's domain: a held-out point, within a factor of 2.5.
    """
    for parameters in (1.2e8, 3e8, 1.2e9):
        advice = advise(parameters=parameters)
        zhang, bergsma = (
            value(advice, laws.CRITICAL, s) for s in (ZHANG, laws.BERGSMA)
        )
        assert 1 / 1.6 < zhang / bergsma < 1.6
    held_out = published("llama31_8b").critical_batch * 8192
    law = value(
        advise(parameters=8e9, tokens=1.321e5 * 8192), laws.CRITICAL, laws.BERGSMA
    )
    assert 1 < law / held_out < 2.5


def test_the_range_is_made_by_the_stated_rule() -> None:
    advice = advise(parameters=3e8, tokens=6e9, sequence=2048)
    best = [value(advice, laws.BEST, s) for s in (laws.BERGSMA, laws.LI, laws.DEEPSEEK)]
    critical = [value(advice, laws.CRITICAL, s) for s in (laws.BERGSMA, ZHANG)]
    assert (advice.low, advice.high) == (round(min(best)), round(min(critical)))
    assert advice.unit == "tokens"
    assert advise(parameters=3e8, examples=6e9 / 2048, sequence=2048) == advice
    half = advise(parameters=3e8)
    assert half == advise(tokens=6e9)
    assert half.rule == advice.rule + "; 20 tokens a parameter assumed"
    # Only critical batches speak: a fifth of the lowest takes 1.2 x the least data.
    late = advise(parameters=7e9, tokens=1e12)
    assert late.low == round(value(late, laws.CRITICAL, laws.MERRILL) / 5)
    assert "carried over" in late.rule
    # Only best batches speak.
    short = advise(parameters=1e10, tokens=1.2e9)
    assert short.low is not None
    assert short.high == pytest.approx(2 * short.low, abs=1)


def test_a_law_inside_its_domain_goes_before_one_outside() -> None:
    advice = advise(parameters=1e9, tokens=2e11)
    standing = {(p.number, p.source): p.standing for p in advice.priors}
    assert standing[laws.BEST, laws.LI] == "2 x outside"
    assert standing[laws.CRITICAL, laws.MERRILL] == "inside"
    assert advice.high == round(value(advice, laws.CRITICAL, laws.MERRILL))
    assert advice.low == round(value(advice, laws.BEST, laws.LI))


def test_no_law_is_carried_far() -> None:
    """Each speaks up to `BEYOND` outside of its own ends and no further."""
    for law in laws.BATCH_LAWS:
        middle = {name: math.sqrt(a * b) for name, (a, b) in law.domain.items()}
        sizes = {"parameters": 1e9, "tokens": 1e10, **middle}
        assert law.prior(sizes).standing == "inside"
        for name, (least, most) in law.domain.items():
            for end, way in ((least, 1 / BEYOND), (most, BEYOND)):
                near = law.prior({**sizes, name: end * way**0.99})
                far = law.prior({**sizes, name: end * way**1.01})
                assert near.estimate is not None
                assert "outside" in near.standing
                assert far.estimate is None
    advice = advise(parameters=7e10, tokens=1.5e13)
    assert all(p.estimate is None for p in advice.priors)
    assert advice.low is advice.high is advice.scaling is None
    assert "nanochat" in advice.rule


def test_the_optimizers_numbers_follow_the_batch() -> None:
    advice = advise(parameters=3e8, tokens=6e9)
    low, high, scaling = advice.low, advice.high, advice.scaling
    assert low
    assert high
    assert scaling
    # The critical batch is where the range ends: the root rule, half way to flat.
    assert scaling.lr == pytest.approx(math.sqrt((1 + high / low) / 2), rel=1e-3)
    assert scaling.weight_decay == pytest.approx(high / low / scaling.lr)
    assert advice.beta2 == pytest.approx((0.5 ** (low / 1e7), 0.9))
    muon = advise(parameters=3e8, tokens=6e9, optimizer="muon")
    assert muon.beta2 == ()
    assert "laws are of AdamW" in muon.rule
    sgd = advise(parameters=3e8, optimizer="SGD")
    assert sgd.low is sgd.scaling is None


def test_fine_tuning_has_a_point_and_other_models_no_law() -> None:
    advice = advise(task="fine-tuning", parameters=7e9, examples=5e4)
    assert (advice.low, advice.high, advice.unit) == (8, 40, "examples")
    assert "noise decides" in advice.rule
    assert advise(task="fine-tuning", examples=20).high == 20
    for kind in POINTS.keys() - {LAWS, "fine-tuning of transformer"}:
        other = advise(model=kind.split()[-1])
        assert other.low is None
        assert all(p.estimate is not None for p in other.priors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "how large"),
        ({"parameters": -1}, "positive"),
        ({"tokens": math.nan}, "positive"),
        ({"tokens": 1e9, "examples": 1e6}, "in the place of tokens"),
        ({"parameters": 1e9, "examples": 1e6}, "go with sequence"),
        ({"parameters": 1e9, "optimizer": "adamm"}, "adamm"),
        ({"parameters": 1e9, "task": "fine-tuning", "model": "graph"}, "of graph"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(rb.SettingError, match=message):
        advise(**arguments)
