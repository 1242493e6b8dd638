"""The verdict where nothing can be known."""

from dataclasses import replace

import rightbatch as rb
from cases import made_up


def test_no_signal_at_all_is_undecided_and_says_at_least() -> None:
    found = made_up()
    silent = replace(found.noise[0].plain, grad_norm_sq=-0.05)
    noise = tuple(replace(p, plain=silent) for p in found.noise)
    plan = rb.decide(replace(found, noise=noise)).plan
    assert not plan.decided
    assert "inf" not in " ".join([plan.verdict, *(r.text for r in plan.why)])
    assert "What would settle it" in plan.verdict
