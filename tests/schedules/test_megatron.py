"""Megatron-LM's spelling of stages is read and written; anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rightbatch as rb
from rightbatch.schedules.parse import parse_schedule

Stages = rb.schedules.Stages


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        # The example of its own pull request, in samples and in tokens of 4096.
        ("0:768 250:1536", 1, ((0, 768), (250, 1536))),
        (
            "0:768 250B:1536 500B:3072 750B:6144",
            4096,
            ((0, 768), (61_035_156, 1536), (122_070_312, 3072), (183_105_468, 6144)),
        ),
        ("0:768, 61035156250:1536", 1, ((0, 768), (61_035_156_250, 1536))),
        (
            "0:1K 1.5m:2k 2T:4K",
            1,
            ((0, 1000), (1_500_000, 2000), (2 * 10**12, 4000)),
        ),
        # 1.15e9 as a float times a billion ends below the whole number
        ("0:8 1.15B:16", 1, ((0, 8), (1_150_000_000, 16))),
        ("0:8 4095:16", 2048, ((0, 8), (1, 16))),
    ],
)
def test_it_is_read(
    text: str, tokens: int, expected: tuple[tuple[int, int], ...]
) -> None:
    assert Stages.from_megatron(text, tokens_per_example=tokens).stages == expected


@given(
    steps=st.lists(
        st.tuples(st.integers(1, 10**12), st.integers(1, 10**5)), max_size=6
    ),
    tokens=st.integers(1, 10**5),
)
def test_what_is_written_reads_back(steps: list[tuple[int, int]], tokens: int) -> None:
    at, pairs = 0, [(0, 64)]
    for further, batch in steps:
        at += further
        pairs.append((at, batch))
    stages = Stages(tuple(pairs))
    text = stages.to_megatron(tokens_per_example=tokens)
    assert Stages.from_megatron(text, tokens_per_example=tokens) == stages


def test_units_are_used_where_they_lose_nothing() -> None:
    stages = Stages(((0, 8), (1500, 16), (2_000_000, 24), (3 * 10**12, 32)))
    assert stages.to_megatron() == "0:8 1500:16 2M:24 3T:32"


def test_it_is_one_more_word_of_the_command_line() -> None:
    words = {"batch": 64, "length": 1000}
    in_examples = parse_schedule("0:64 50k:128", **words)
    assert in_examples == parse_schedule("stages:0=64,50k=128", **words)
    in_tokens = parse_schedule("0:64 50k:128 tokens/50", **words)
    assert in_tokens == parse_schedule("stages:0=64,1k=128", **words)
    for wrong in ("0:64 50k:128 tokens/", "0:64 50k:128 tokens/x", "0:64 tokens/0"):
        with pytest.raises(rb.SettingError):
            parse_schedule(wrong, **words)


@pytest.mark.parametrize(
    ("text", "tokens", "said"),
    [
        ("", 1, "cannot be read"),
        ("768", 1, "cannot be read"),
        ("0:768 250B", 1, "cannot be read"),
        ("0:768 250X:1536", 1, "cannot be read"),
        ("0:768 2epochs:1536", 1, "cannot be read"),
        ("0:768 0.5:1536", 1, "cannot be read"),
        ("0:768:3 250B:1536", 1, "cannot be read"),
        ("0:768 9K:1536 tokens/x", 1, "cannot be read"),
        ("100:768 250B:1536", 1, "begin at 0"),
        ("0:768 5:1536 5:2000", 1, "increase"),
        ("0:768 9:1536 5:2000", 1, "increase"),
        ("0:768 10:1536", 4096, "increase"),  # both places are in the first example
        ("0:0 10:1536", 1, "batch of the stage"),
        ("0:768 10:1536", 0, "tokens_per_example"),
    ],
)
def test_anything_else_is_refused(text: str, tokens: int, said: str) -> None:
    with pytest.raises(rb.SettingError, match=said):
        Stages.from_megatron(text, tokens_per_example=tokens)
