"""The saved state of a stream, and why one is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from rightbatch.core.errors import SettingError
from rightbatch.data.loading.step_plan import Planner
from rightbatch.data.order.order import Cursor

VERSION = 2


def state_of(
    planner: Planner,
    cursor: Cursor,
    *,
    batch_size: int,
    segment: int,
    fingerprint: str,
    order_settings: str,
) -> dict[str, Any]:
    """A few numbers and strings, equal on all ranks."""
    return {
        "version": VERSION,
        "order": planner.order.name,
        "length": planner.order.length,
        "seed": planner.seed,
        "position": cursor.position,
        "step": cursor.step,
        "first_step": cursor.first_step,
        "extra": list(cursor.extra),
        "batch_size": batch_size,
        "segment": segment,
        "order_settings": order_settings,
        "fingerprint": fingerprint,
    }


def restored(
    state: Mapping[str, Any], planner: Planner, fingerprint: str, order_settings: str
) -> Cursor:
    """The cursor of a saved state.

    Raises:
        SettingError: It belongs to something else.
    """
    own = state_of(
        planner,
        Cursor(),
        batch_size=0,
        segment=0,
        fingerprint=fingerprint,
        order_settings=order_settings,
    )
    keys = state if isinstance(state, Mapping) else {}
    if keys.get("version", VERSION) != VERSION:
        raise SettingError(
            "the state was saved by another version of rightbatch",
            seen=f"state version {keys['version']}, this one reads {VERSION}",
            fix="load it with the version that saved it",
        )
    missing = [key for key in own if key not in keys]
    numbers = ("position", "step", "first_step", "batch_size", "segment")
    wrong = [k for k in numbers if not missing and not _natural(state[k])]
    if not missing and not wrong:
        extra = state["extra"]
        sound = isinstance(extra, (list, tuple)) and all(map(_natural, extra))
        if all(own[k] == state[k] for k in ("order", "length", "order_settings")):
            sound = sound and planner.order.accepts(tuple(extra))
        wrong = [] if sound else ["extra"]
    if missing or wrong:
        raise SettingError(
            "this is no state of a BatchStream",
            seen=f"without {', '.join(missing[:4])}"
            if missing
            else ", ".join(f"{k} = {state[k]!r}" for k in wrong),
            fix="what stream.state_dict() gave",
        )
    if state["length"] != own["length"]:
        raise SettingError(
            "the data set's length has changed since the state was saved",
            seen=f"{state['length']} examples then, {own['length']} now",
            why="the order is of so many examples: another number is another order, "
            "and what was already seen in this epoch cannot be told",
            fix="restore the data set, or begin an epoch: "
            f"stream.set_epoch({state['position'] // state['length'] + 1})",
        )
    for key, what, why in (
        ("seed", "another seed", "its order of examples is another one"),
        ("order", "another order", "positions in it mean other examples"),
        (
            "order_settings",
            "other labels, lengths or settings of the order",
            "positions in it mean other examples",
        ),
        (
            "fingerprint",
            "another data set",
            "examples would be lost, others seen twice",
        ),
    ):
        if state[key] != own[key]:
            raise SettingError(
                f"the state was saved with {what}",
                seen=f"{key} {state[key]!r} then, {own[key]!r} now",
                why=why,
                fix=f"the {key.replace('_', ' ')} it had"
                + (f": {state[key]!r}" if key in ("seed", "order") else "")
                if key != "fingerprint"
                else "the data set that it was saved with; if it is the same: "
                "state['fingerprint'] = stream.state_dict()['fingerprint'] before "
                "loading, and from now on BatchStream(fingerprint='any string')",
            )
    return Cursor(
        position=int(state["position"]),
        step=int(state["step"]),
        first_step=int(state["first_step"]),
        extra=tuple(int(i) for i in state["extra"]),
    )


def gathered(own: Any, world_size: int) -> list[Any]:
    """What every rank has. Collective."""
    found: list[Any] = [None] * world_size
    dist.all_gather_object(found, own)
    return found


def alike(states: list[dict[str, Any]]) -> None:
    """See that all ranks' streams are one.

    Raises:
        SettingError: They are not.
    """
    for rank, state in enumerate(states):
        wrong = [key for key in state if state[key] != states[0][key]]
        if wrong:
            key = wrong[0]
            raise SettingError(
                "the ranks' streams are not alike",
                seen=f"{key} {states[0][key]!r} on rank 0, {state[key]!r} on rank "
                f"{rank}",
                why="each takes its part of what it thinks is the batch: some examples "
                "would be lost, others seen twice",
                fix="the same data set, seed and sizes on every rank; for ranks that "
                "are no part of one job: rank=0, world_size=1",
            )


def _natural(value: object) -> bool:
    return type(value) is int and value >= 0


def digest(values: dict[str, Any]) -> str:
    """Sixteen letters for an order's own values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
