"""Schedules and rates as one word on a command line: ``ramp:32:512:3epochs``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from rightbatch.core.errors import RightbatchError, SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.schedules.live import FollowNoise, SignalToNoise
from rightbatch.schedules.lr_exchange import AlongRate, InsteadOfDecay
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Anneal, Constant, Ramp, Schedule, Stages

SCHEDULES = (
    "constant:64",
    "stages:0=64,50k=128",
    "0:768 50k:1536, as Megatron-LM writes it, places in examples (or, with "
    "tokens/4096 behind it, in tokens, 4096 an example)",
    "ramp:32:512:3epochs[:geometric]",
    "anneal:64:512:10epochs[:logarithmic]",
    "smith:512 or seesaw:512 (grow up to 512 instead of the --rate decay)",
    "temperature or update-variance (the batch follows --rate down)",
    "noise:0.5[:512[:0.7]] (0.5 x the noise scale, up to 512; calibrated by 0.7)",
    "noise[::512[:0.7]] (the optimum in time; needs --plan)",
    "signal[:512] (grows as 1 / |G|^2)",
)
RATES = (
    "cosine:10epochs[:0.01]",
    "linear:10epochs[:0.01]",
    "steps:0=1,50k=0.1",
    "each after a warm-up: warmup:2k+cosine:10epochs (or warmup:2k alone)",
)
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def parse_rate(text: str, length: int) -> Rate:
    """A `Rate` as it is written in one word.

    All places count from the beginning of the run: ``warmup:500+cosine:9epochs`` rises
    for 500 examples and has come down at the end of the ninth epoch.

    Args:
        text: One of the forms in ``RATES``.
        length: Examples in the data set, for what is given in epochs.

    Raises:
        SettingError: It is none of them.

    Example:
        >>> parse_rate("cosine:10epochs:0.1", length=500)(5000)
        0.1
        >>> parse_rate("warmup:0.1epochs+steps:0=1,50k=0.1", length=1000)(50)
        0.5
    """
    first, joined, decays = text.partition("+")
    kind, _, until = first.partition(":")
    warmup = 0
    if kind == "warmup":
        warmup = whole_number(parse_examples(until, length), "warmup")
        text = decays if joined else "steps:0=1"

    def steps(pairs: str) -> Rate:
        factors = {at: float(f) for at, f in _pairs(pairs, length)}
        return Rate.steps(factors, warmup=warmup)

    def decay(make: Any) -> Callable[..., Rate]:
        return lambda examples, floor="0": make(
            parse_examples(examples, length), floor=float(floor), warmup=warmup
        )

    kinds = {"steps": steps, "cosine": decay(Rate.cosine), "linear": decay(Rate.linear)}
    return _parsed("rate", text, kinds, RATES)


def parse_schedule(
    text: str,
    *,
    batch: int,
    length: int,
    rate: Rate | None = None,
    half_batch: float | None = None,
) -> Schedule:
    """A `Schedule` as it is written in one word.

    Args:
        text: One of the forms in ``SCHEDULES``.
        batch: The batch to begin with, where the word does not say.
        length: Examples in the data set.
        rate: The decay, for the forms that take one up.
        half_batch: For ``noise``: that of the plan.

    Raises:
        SettingError: It is none of them, or lacks something.

    Example:
        >>> parse_schedule("ramp:32:512:3epochs", batch=64, length=1000)
        Ramp(first=32, last=512, examples=3000, form='linear')
        >>> parse_schedule("stages:0=64,50k=128", batch=64, length=1000).stages
        ((0, 64), (50000, 128))
    """

    def decay() -> Rate:
        if rate is None:
            raise SettingError(
                f"the schedule {text} takes the place of a decay, and there is none",
                seen=f"--schedule {text}",
                fix="--rate cosine:10epochs:0.01 beside it, in rightbatch train: the "
                "scheduler of a Trainer or a LightningModule is not read for it",
            )
        return rate

    def transition(kind: Any) -> Callable[..., Schedule]:
        return lambda first, last, examples, *form: kind(
            int(first), int(last), parse_examples(examples, length), *form
        )

    def noise(fraction: str = "", most: str = "", calibration: str = "1") -> Schedule:
        limit, factor = int(most or length), float(calibration)
        if fraction:
            share = float(fraction)
            return FollowNoise(batch, fraction=share, most=limit, calibration=factor)
        if half_batch is None:
            raise SettingError(
                "the schedule 'noise' needs a plan, or a fraction",
                seen="no --plan",
                why="the optimum in time is sqrt(noise scale x half batch), and the "
                "half batch is measured by tune",
                fix="--plan runs/.../plan.json, or --schedule noise:0.5",
            )
        # The planned batch is the best for the noise of a whole run: early on there is
        # less of it, and no more than seed noise is gained by a smaller batch
        # [measured: benchmarks/truth/follow.py].
        return FollowNoise(
            batch, half_batch=half_batch, least=batch, most=limit, calibration=factor
        )

    if text.strip()[:1].isdigit():  # no kind of ours is written so
        pairs, _, tokens = text.partition(" tokens/")
        if not tokens.isdecimal():
            return Stages.from_megatron(text)
        return Stages.from_megatron(pairs, tokens_per_example=int(tokens))

    kinds = {
        "constant": lambda size: Constant(int(size)),
        "stages": lambda pairs: Stages(
            tuple((at, int(size)) for at, size in _pairs(pairs, length))
        ),
        "ramp": transition(Ramp),
        "anneal": transition(Anneal),
        "smith": lambda most: InsteadOfDecay(batch, decay(), int(most), "smith"),
        "seesaw": lambda most: InsteadOfDecay(batch, decay(), int(most), "seesaw"),
        "temperature": lambda: AlongRate(batch, decay(), "temperature"),
        "update-variance": lambda: AlongRate(batch, decay(), "update-variance"),
        "noise": noise,
        "signal": lambda most=length: SignalToNoise(batch, most=int(most)),
    }
    return _parsed("schedule", text, kinds, SCHEDULES)


def parse_examples(text: str, length: int) -> int:
    """A number of examples: ``5000``, ``50k``, ``1.5m`` or ``3epochs``.

    Raises:
        SettingError: It is none of these.

    Example:
        >>> parse_examples("1.5epochs", 1000), parse_examples("50k", 1000)
        (1500, 50000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k|m|b|e|ep|epochs?|)", text.lower())
    if match is None:
        raise SettingError(
            "this is no number of examples",
            seen=repr(text),
            fix="5000, 50k, 1.5m or 3epochs",
        )
    number, unit = float(match[1]), match[2]
    return round(number * (length if unit.startswith("e") else _UNITS[unit]))


def _parsed(
    what: str, text: str, kinds: dict[str, Callable[..., Any]], forms: tuple[str, ...]
) -> Any:
    """What the word's kind makes of its parts, ``kind:part:part``."""
    kind, *parts = text.split(":")
    try:
        return kinds[kind](*parts)
    except RightbatchError:
        raise
    except (KeyError, ValueError, TypeError) as error:
        raise SettingError(
            f"the {what} cannot be read", seen=repr(text), fix="; ".join(forms)
        ) from error


def _pairs(text: str, length: int) -> list[tuple[int, str]]:
    pairs = [pair.split("=") for pair in text.split(",")]
    places = [(parse_examples(place, length), value) for place, value in pairs]
    if len({place for place, _ in places}) < len(places):
        raise ValueError(f"a place is given twice in {text}")
    return places
