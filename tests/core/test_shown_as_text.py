"""Values of many fields show a sentence where people meet them."""

import pytest
import torch

import rightbatch as rb
from cases import regression_job


@pytest.mark.parametrize("ask", [rb.noise_scale, rb.largest_batch, rb.check])
def test_a_value_shows_its_words_at_the_prompt(ask: object) -> None:
    assert callable(ask)
    value = ask(regression_job())
    words = str(value)
    assert len(words) < 1000
    assert words in repr(value)
    assert "object at" not in words
    assert value._repr_html_().startswith("<pre>")


def test_nothing_measured_is_said() -> None:
    monitor = rb.NoiseMonitor(torch.nn.Linear(2, 1))
    assert "nothing" in str(monitor.read())
