"""The saved state of a stream, and why one is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from rightbatch.core.errors import SettingError
from rightbatch.data.order.order import Cursor

VERSION = 2
MOVED = "positions in it mean other examples"


def restored(state: Mapping[str, Any], expected: Mapping[str, Any]) -> Cursor:
    """The cursor of a saved state.

    Args:
        state: As it was saved.
        expected: The state of the stream that shall go on from it.

    Raises:
        SettingError: It belongs to something else.
    """
    check_form(state, expected, "BatchStream")
    next_epoch = state["position"] // state["length"] + 1
    for key, what, why, fix in (
        (
            "length",
            "a data set of another length",
            "another number of examples has another order",
            f"restore the data set, or begin an epoch: stream.set_epoch({next_epoch})",
        ),
        ("seed", "another seed", MOVED, f"seed={state['seed']!r}"),
        ("order", "another order", MOVED, f"the order it had: {state['order']!r}"),
        (
            "order_settings",
            "other labels, lengths or settings of the order",
            MOVED,
            "the labels, lengths and settings it had",
        ),
        (
            "fingerprint",
            "another data set",
            "examples would be lost, others seen twice",
            "the data set that it was saved with; if it is the same: "
            "state['fingerprint'] = stream.state_dict()['fingerprint'] before "
            "loading, and from now on BatchStream(fingerprint='any string')",
        ),
    ):
        if state[key] != expected[key]:
            raise SettingError(
                f"the state was saved with {what}",
                seen=f"{key} {state[key]!r} then, {expected[key]!r} now",
                why=why,
                fix=fix,
            )
    return Cursor(
        position=int(state["position"]),
        step=int(state["step"]),
        first_step=int(state["first_step"]),
        extra=tuple(int(i) for i in state["extra"]),
    )


def check_form(state: Mapping[str, Any], expected: Mapping[str, Any], of: str) -> None:
    """Refuse what no stream of this kind and version has saved.

    Raises:
        SettingError: It is something else.
    """
    missing = [key for key in expected if key not in state]
    if missing or state["version"] != VERSION:
        raise SettingError(
            f"this is no state of a {of} of this version",
            seen=f"without {', '.join(missing[:4])}"
            if missing
            else f"state version {state['version']}, this one reads {VERSION}",
            fix="what stream.state_dict() gave",
        )


def check_ranks_agree(settings: dict[str, Any], world_size: int) -> None:
    """See that all ranks' streams have the same settings. Collective.

    Raises:
        SettingError: They have not.
    """
    ranks: list[Any] = [None] * world_size
    dist.all_gather_object(ranks, settings)
    for rank, other in enumerate(ranks):
        for key, value in ranks[0].items():
            if other[key] != value:
                raise SettingError(
                    "the ranks' streams are not alike",
                    seen=f"{key} {value!r} on rank 0, {other[key]!r} on rank {rank}",
                    why="each takes its part of what it thinks is the batch: some "
                    "examples would be lost, others seen twice",
                    fix="the same data set, seed and sizes on every rank; for ranks "
                    "that are no part of one job: rank=0, world_size=1",
                )


def digest(values: dict[str, Any]) -> str:
    """Sixteen letters for an order's own values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
