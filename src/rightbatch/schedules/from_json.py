"""Schedules from JSON."""

from __future__ import annotations

from typing import Any

from rightbatch.core.errors import RunFolderError
from rightbatch.core.json_io import from_plain
from rightbatch.schedules.live import FollowNoise, SignalToNoise
from rightbatch.schedules.lr_exchange import AlongRate, InsteadOfDecay
from rightbatch.schedules.schedule import Anneal, Constant, Ramp, Schedule, Stages

KINDS: dict[str, type[Schedule]] = {
    kind.__name__: kind
    for kind in (
        Constant,
        Stages,
        Ramp,
        Anneal,
        InsteadOfDecay,
        AlongRate,
        FollowNoise,
        SignalToNoise,
    )
}


def schedule_from(plain: dict[str, Any]) -> Schedule:
    """The schedule that ``to_plain`` was made of.

    Raises:
        RunFolderError: There is no such kind, or its fields do not fit.

    Example:
        >>> schedule_from(Ramp(32, 256, 9_000).to_plain())
        Ramp(first=32, last=256, examples=9000, form='linear')
    """
    fields = dict(plain)
    kind = KINDS.get(str(fields.pop("kind", "")))
    if kind is None:
        raise RunFolderError(
            "there is no such schedule", seen=f"kind {plain.get('kind')!r}"
        )
    try:
        return from_plain(kind, fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise RunFolderError(
            f"the saved {kind.__name__} is damaged", seen=str(error)
        ) from error
