"""Schedules and rates as one word on a command line: ``ramp:32:512:3epochs``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rightbatch.core.errors import RightbatchError, SettingError
from rightbatch.schedules.from_json import schedule_from
from rightbatch.schedules.live import FollowNoise, SignalToNoise
from rightbatch.schedules.lr_exchange import AlongRate, InsteadOfDecay
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Anneal, Constant, Ramp, Schedule, Stages

SCHEDULES = (
    "constant:64",
    "stages:0=64,50k=128",
    "ramp:32:512:3epochs[:geometric]",
    "anneal:64:512:10epochs[:logarithmic]",
    "smith:512 or seesaw:512 (grow up to 512 instead of the --rate decay)",
    "temperature or update-variance (the batch follows --rate down)",
    "noise:0.5[:512] (0.5 x the noise scale, up to 512)",
    "noise[::512] (the optimum in time; needs --plan)",
    "signal[:512] (grows as 1 / |G|^2)",
    "a file of JSON",
)
RATES = ("cosine:10epochs[:0.01]", "linear:10epochs[:0.01]", "steps:0=1,50k=0.1")
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def parse_rate(text: str, length: int) -> Rate:
    """A `Rate` as it is written in one word.

    Args:
        text: One of the forms in ``RATES``.
        length: Examples in the data set, for what is told in epochs.

    Raises:
        SettingError: It is none of them.

    Example:
        >>> parse_rate("cosine:10epochs:0.1", length=500)(5000)
        0.1
    """
    kind, *rest = text.split(":")
    try:
        if kind == "steps":
            (pairs,) = rest
            return Rate.steps({a: float(b) for a, b in _pairs(pairs, length)})
        if kind in ("cosine", "linear"):
            examples, floor = parse_examples(rest[0], length), 0.0
            if len(rest) > 1:
                (floor,) = (float(value) for value in rest[1:])
            make = Rate.cosine if kind == "cosine" else Rate.linear
            return make(examples, floor=floor)
    except RightbatchError:
        raise
    except (ValueError, IndexError) as error:
        raise _unread("rate", text, RATES) from error
    raise _unread("rate", text, RATES)


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
        text: One of the forms in ``SCHEDULES``, or the path of a JSON file.
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
    if text.endswith(".json"):
        return _from_file(Path(text))
    kind, *rest = text.split(":")
    if kind in ("smith", "seesaw", "temperature", "update-variance") and rate is None:
        raise SettingError(
            f"the schedule {kind} takes the place of a decay, and there is none",
            seen=f"--schedule {text}",
            fix="--rate cosine:10epochs:0.01 beside it",
        )
    try:
        if kind == "constant":
            (size,) = rest
            return Constant(int(size))
        if kind == "stages":
            (pairs,) = rest
            return Stages(tuple((a, int(b)) for a, b in _pairs(pairs, length)))
        if kind in ("ramp", "anneal"):
            first, last, examples, *form = rest
            make: Any = Ramp if kind == "ramp" else Anneal
            fields = (int(first), int(last), parse_examples(examples, length), *form)
            return make(*fields)
        if kind in ("smith", "seesaw"):
            (most,) = rest
            assert rate is not None
            return InsteadOfDecay(batch, rate, int(most), kind)
        if kind in ("temperature", "update-variance"):
            if rest:
                raise ValueError(rest)
            assert rate is not None
            return AlongRate(batch, rate, kind)
        if kind == "noise":
            return _noise(rest, batch, length, half_batch)
        if kind == "signal":
            most = int(rest[0]) if rest else length
            return SignalToNoise(batch, most=most)
    except RightbatchError:
        raise
    except (ValueError, IndexError, TypeError) as error:
        raise _unread("schedule", text, SCHEDULES) from error
    raise _unread("schedule", text, SCHEDULES)


def parse_examples(text: str, length: int) -> int:
    """A number of examples: ``5000``, ``50k``, ``1.5m`` or ``3epochs``.

    Raises:
        SettingError: It is none of these.

    Example:
        >>> parse_examples("1.5epochs", 1000), parse_examples("50k", 1000)
        (1500, 50000)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k|m|b|e|ep|epochs?|)", text.lower())
    if found is None:
        raise SettingError(
            "this is no number of examples",
            seen=repr(text),
            fix="5000, 50k, 1.5m or 3epochs",
        )
    number, unit = float(found[1]), found[2]
    return round(number * (length if unit.startswith("e") else _UNITS[unit]))


def _noise(
    rest: list[str], batch: int, length: int, half_batch: float | None
) -> FollowNoise:
    share, most, *odd = [*rest, "", ""][: max(2, len(rest))]
    if odd:
        raise ValueError(rest)
    largest = int(most) if most else length
    if share:
        return FollowNoise(batch, fraction=float(share), most=largest)
    if half_batch is None:
        raise SettingError(
            "the schedule 'noise' needs a plan, or a fraction",
            seen="no --plan",
            why="the optimum in time is sqrt(noise scale x half batch), and the half "
            "batch is measured by tune",
            fix="--plan runs/.../plan.json, or --schedule noise:0.5",
        )
    return FollowNoise(batch, half_batch=half_batch, most=largest)


def _pairs(text: str, length: int) -> list[tuple[int, str]]:
    pairs = [pair.split("=") for pair in text.split(",")]
    found = [(parse_examples(place, length), value) for place, value in pairs]
    if len({place for place, _ in found}) < len(found):
        raise ValueError(f"a place is given twice in {text}")
    return found


def _from_file(path: Path) -> Schedule:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(
            f"cannot read the schedule {path}", seen=str(error)
        ) from error
    if not isinstance(plain, dict):
        raise SettingError(f"{path} holds no schedule", seen=type(plain).__name__)
    return schedule_from(plain)


def _unread(what: str, text: str, forms: tuple[str, ...]) -> SettingError:
    return SettingError(
        f"the {what} cannot be read", seen=repr(text), fix="; ".join(forms)
    )
