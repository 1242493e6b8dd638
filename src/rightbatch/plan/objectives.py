"""What is to be least: time, energy, money or examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rightbatch.core.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """The least time to the same result."""

    name: ClassVar[str] = "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The fewest examples to the same result; of those about as few, the fastest.

    The fewest of all is always the smallest batch, at any price in time. So batches
    within ``tolerance`` of it count as equal, and the fastest of them is taken.

    Attributes:
        tolerance: Share of examples above the fewest that is given for time.
    """

    name: ClassVar[str] = "examples"
    tolerance: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """The least energy to the same result.

    Measured where there is a meter. Without one it is modelled as constant power times
    time, and labelled so: the batch is then that of `Time`.

    Attributes:
        watts: Power of the device while it trains; None: as measured.
    """

    name: ClassVar[str] = "energy"
    watts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """The least money to the same result, on one machine paid by the hour.

    Attributes:
        per_hour: Price of the machine; None to compare batches without an amount.
    """

    name: ClassVar[str] = "money"
    per_hour: float | None = None


Objective = Time | Examples | Energy | Money


def no_energy(seen: str) -> SettingError:
    """The refusal of energy as an objective where it is neither measured nor given."""
    return SettingError(
        "energy is neither measured nor given",
        seen=seen,
        why="without a meter it has to be modelled: power times time",
        fix="--objective energy --watts 65 (what the device draws while training)",
    )


def objective_named(
    name: str, *, watts: float | None = None, price: float | None = None
) -> Objective:
    """The objective of a command line.

    Raises:
        SettingError: Unknown name, or a value that is not positive.
    """
    for option, value in (("watts", watts), ("price", price)):
        if value is not None and not 0 < value < float("inf"):
            raise SettingError(f"{option} must be positive", seen=f"{option}={value}")
    if watts is not None and name != "energy":
        raise SettingError(
            f"watts have no effect on the objective {name}", fix="--objective energy"
        )
    if price is not None and name != "money":
        raise SettingError(
            f"a price has no effect on the objective {name}", fix="--objective money"
        )
    named = {
        "time": Time(),
        "examples": Examples(),
        "energy": Energy(watts=watts),
        "money": Money(per_hour=price),
    }
    if name not in named:
        raise SettingError(
            f"there is no objective {name!r}", fix=f"one of {', '.join(named)}"
        )
    return named[name]
