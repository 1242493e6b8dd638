"""Stairs of step time."""

import dataclasses

import pytest

import rightbatch as rb
from cases import made_up
from rightbatch.core.estimate import Estimate
from rightbatch.fit.stairs import stair
from rightbatch.fit.step_time import fit_time
from rightbatch.measure.measurements import TimePoint


def test_stairs_are_noticed_and_left_out_of_the_law() -> None:
    """40 % more at 65 than at 64 is a stair; 1/64 more is what the line says."""
    found = made_up(sizes=(1, 2, 4, 8, 16, 32, 64, 128))
    plain = fit_time(found.times)

    def with_65(factor: float) -> tuple[TimePoint, ...]:
        seconds = factor * plain.seconds(65)
        rounds = tuple(seconds * (1 + 0.001 * i) for i in range(-3, 4))
        point = dataclasses.replace(
            found.times[-1],
            micro_batch=65,
            step_time_s=Estimate.median(rounds, "s"),
            rounds=rounds,
        )
        return tuple(sorted((*found.times, point), key=lambda p: p.micro_batch))

    edge, jump = stair(with_65(1.4)) or (0, None)
    assert edge == 64
    assert jump is not None
    assert jump.value == pytest.approx(1.4, abs=0.02)
    level = stair(with_65(1.0))
    assert level is not None
    assert level[1].value == pytest.approx(1.0, abs=0.02)
    assert stair(found.times) is None
    assert fit_time(with_65(1.4)).seconds(128) == pytest.approx(plain.seconds(128))
    plan = rb.decide(dataclasses.replace(found, times=with_65(1.4))).plan
    assert any("stairs: 65 examples" in text for text in plan.limits)
    calm = rb.decide(dataclasses.replace(found, times=with_65(1.0))).plan
    assert not any("stairs" in text for text in calm.limits)
