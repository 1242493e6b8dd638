"""Memory and deadlines: what fits, and what is refused."""

import pytest

import rightbatch as rb
from cases import made_up, ran_to_target
from rightbatch.plan.choice import choose


def test_memory_forces_accumulation() -> None:
    found = made_up(t0=0.1, t1=1e-4, critical=1000)
    free = choose(found)
    assert free.chosen.batch_size >= 128
    tight = choose(found, memory_bytes=10_000_000 + 33 * 100_000)
    assert tight.chosen.micro_batch == 32
    assert (
        tight.chosen.batch_size == tight.chosen.micro_batch * tight.chosen.accumulation
    )
    with pytest.raises(rb.SettingError, match="not even one example"):
        choose(found, memory_bytes=9_000_000)


def test_deadlines() -> None:
    found = ran_to_target(1000)
    choice = choose(found)
    assert choice.chosen.seconds is not None
    least = choice.chosen.seconds.value
    critical, t0, t1 = 64, 2e-3, 5e-4
    b = choice.chosen.batch_size
    steps = 1000 * (1 + critical / b) / 2
    assert least == pytest.approx(steps * (t0 + t1 * b), rel=1e-2)
    fewest = choose(found, rb.objectives.Examples(), deadline_s=1.3 * least)
    unlimited = choose(found, rb.objectives.Examples())
    assert unlimited.chosen.batch_size < fewest.chosen.batch_size or (
        unlimited.chosen.time.value <= 1.3 * choice.chosen.time.value
    )
    assert fewest.chosen.seconds is not None
    assert fewest.chosen.seconds.value <= 1.3 * least
    with pytest.raises(rb.UnidentifiedError, match="no batch size meets"):
        choose(found, deadline_s=0.5 * least)
    with pytest.raises(rb.UnidentifiedError, match="cannot be judged"):
        choose(made_up(), deadline_s=10)
