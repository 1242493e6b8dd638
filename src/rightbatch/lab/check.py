"""What must be seen for a claim: a number of theory beside the measured one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number

Part = Literal["claim", "limit", "correction"]
Verdict = Literal["holds", "holds if", "fails as written", "not reproduced"]
COUNTS = 1e9  # whole numbers below are shown digit by digit
RELATIONS = {"equals": "=", "at least": ">=", "at most": "<="}


@dataclass(frozen=True, kw_only=True)
class Check:
    """A number that must be seen, and numbers that must not be.

    Attributes:
        what: The quantity, in a few words.
        theory: What it must be, or the bound.
        measured: What was seen, with its interval.
        relation: ``"equals"``: within ``margin`` of the theory; or a bound.
        margin: Largest distance from the theory, in the quantity's own unit.
        part: ``"claim"``: the sentence as the texts have it; ``"limit"``: what is seen
            where its condition is broken; ``"correction"``: what is true instead.
        wrong: Errors planted, by name: the theory as a wrong law would have it, such as
            another exponent; or, for a bound, what a world without the effect shows.
    """

    what: str
    theory: float
    measured: Estimate
    relation: Literal["equals", "at least", "at most"]
    margin: float = 0.0
    part: Part = "claim"
    wrong: Mapping[str, float]

    @property
    def passes(self) -> bool:
        """Whether what was seen agrees with the theory."""
        return self._agree(self.theory, self.measured.value)

    @property
    def missed(self) -> tuple[str, ...]:
        """Planted errors that this check would have let through."""
        return tuple(name for name, value in self.wrong.items() if self._lets(value))

    def _lets(self, value: float) -> bool:
        if self.relation == "equals":
            return self._agree(value, self.measured.value)
        return self._agree(self.theory, value)

    def _agree(self, theory: float, measured: float) -> bool:
        if not math.isfinite(measured):
            return False
        if self.relation == "equals":
            return abs(measured - theory) <= self.margin
        return measured >= theory if self.relation == "at least" else measured <= theory


def equals(
    what: str,
    theory: float,
    measured: Estimate | float,
    *,
    wrong: Mapping[str, float],
    within: float = 0.0,
    margin: float = 0.0,
    part: Part = "claim",
) -> Check:
    """A check of a number that the theory gives.

    Args:
        what: The quantity.
        theory: Its value.
        measured: As seen; a plain number is exact.
        wrong: Other theories' values, by name, each of which must be turned down.
        within: Relative distance allowed, of the theory.
        margin: Absolute distance allowed, beside the relative one.
        part: Of the sentence as written, of its limit, or of its correction.

    Example:
        >>> check = equals("variance", 0.25, 0.26, within=0.1, wrong={"1/sqrt(b)": 0.5})
        >>> check.passes, check.missed
        (True, ())
    """
    return Check(
        what=what,
        theory=float(theory),
        measured=_estimate(measured),
        relation="equals",
        margin=float(within * abs(theory) + margin),
        part=part,
        wrong={name: float(value) for name, value in wrong.items()},
    )


def at_least(
    what: str,
    bound: float,
    measured: Estimate | float,
    *,
    wrong: Mapping[str, float],
    part: Part = "claim",
) -> Check:
    """A check of a number that must reach a bound; ``wrong``: of controls."""
    return _bounded(what, bound, measured, wrong, part, "at least")


def at_most(
    what: str,
    bound: float,
    measured: Estimate | float,
    *,
    wrong: Mapping[str, float],
    part: Part = "claim",
) -> Check:
    """A check of a number that must stay under a bound; ``wrong``: of controls."""
    return _bounded(what, bound, measured, wrong, part, "at most")


def _bounded(
    what: str,
    bound: float,
    measured: Estimate | float,
    wrong: Mapping[str, float],
    part: Part,
    relation: Literal["at least", "at most"],
) -> Check:
    return Check(
        what=what,
        theory=float(bound),
        measured=_estimate(measured),
        relation=relation,
        part=part,
        wrong={name: float(value) for name, value in wrong.items()},
    )


def _estimate(measured: Estimate | float) -> Estimate:
    """Plain numbers all through: JSON knows none of numpy's."""
    if not isinstance(measured, Estimate):
        return Estimate.exact(float(measured))
    value, low, high = map(float, (measured.value, measured.low, measured.high))
    return replace(measured, value=value, low=low, high=high)


def shown(value: float | Estimate) -> str:
    """A number, or an estimate, as people read it; counts in full.

    Example:
        >>> shown(2442.0), shown(0.123456)
        ('2,442', '0.123')
    """
    if isinstance(value, Estimate):
        return shown(value.value) if value.low == value.high else str(value)
    whole = value.is_integer() and abs(value) < COUNTS
    return f"{value:,.0f}" if whole else show_number(value)


def verdict(checks: tuple[Check, ...]) -> Verdict:
    """What the checks come to.

    The sentence as written holds where all of its own checks pass; it holds under a
    condition where, beyond that, it was seen to break without it; it fails where a
    check of its own does not pass and every check of its correction does.
    """

    def passing(part: Part) -> bool:
        return all(check.passes for check in checks if check.part == part)

    parts = {check.part for check in checks}
    if passing("claim") and passing("limit"):
        return "holds if" if "limit" in parts else "holds"
    corrected = "correction" in parts and passing("correction") and passing("limit")
    return "fails as written" if corrected else "not reproduced"
