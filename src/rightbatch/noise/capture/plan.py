"""What was confirmed on this model: where the examples lie at each of its calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rightbatch.noise.capture.group_norms import ParameterKey
from rightbatch.noise.capture.layout import Axis

# How a call is seen: by a formula, with the examples on an axis; run again for every
# group; as rows of a table that meet the examples later; or not at all.
Route = Axis | Literal["again", "rows", "none"]


class Place(NamedTuple):
    """A call in the forward pass that parameters enter.

    Attributes:
        name: The function's.
        keys: The parameters.
        number: How many like it came before in this step.
    """

    name: str
    keys: tuple[ParameterKey, ...]
    number: int


@dataclass
class Plan:
    """How every call is seen, and which parameters were confirmed to be seen so.

    Attributes:
        routes: Of every call that was there when the model was verified.
        confirmed: Parameters whose groups' gradients were those of single passes.
        refused: All others, and why.
        barred: Parameters that are left alone for good, and why.
    """

    routes: dict[Place, Route] = field(default_factory=dict)
    confirmed: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    barred: dict[int, str] = field(default_factory=dict)
    _departed: set[int] = field(default_factory=set)

    def route(self, place: Place, *, again: bool) -> Route | None:
        """How a call is seen; None if it is not known.

        Args:
            place: The call.
            again: Whether the forward pass runs again (checkpointing), where a call's
                number says nothing.
        """
        if not again:
            return self.routes.get(place)
        alike = (r for p, r in self.routes.items() if p[:2] == place[:2])
        return next(alike, None)

    def depart(self, indexes: set[int], why: str) -> None:
        """These parameters entered calls that are not known: they are not confirmed.

        Where that happens twice they are left alone for good.
        """
        gone = indexes & self.confirmed
        self.barred |= dict.fromkeys(gone & self._departed, why)
        self._departed |= gone
        self.confirmed -= gone
        self.refused |= dict.fromkeys(gone, why)
