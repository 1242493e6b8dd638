"""Whether outputs on one rank depend on another rank, or on which rank it is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.trees import to_device
from rightbatch.coupling.leak import Leak, Mode
from rightbatch.coupling.leak_search import LeakSearch
from rightbatch.coupling.module_trace import Call, first_source
from rightbatch.coupling.movement import difference
from rightbatch.coupling.perturbation import (
    SEED,
    Across,
    Kind,
    Question,
    changed_batch,
)
from rightbatch.coupling.repeated_pass import RepeatedPass

Made = TypeVar("Made")


class RankSearch:
    """What is tried on the models of all ranks together.

    Args:
        search: This rank's own; what is found is added to it, on every rank the same.
        examples: In this rank's batch.

    Raises:
        SettingError: There are no two ranks.
    """

    def __init__(self, search: LeakSearch, examples: int) -> None:
        if not dist.is_initialized() or dist.get_world_size() < 2:
            raise SettingError(
                "ranks=True needs two ranks",
                why="the examples of one are changed, the outputs of the other watched",
                fix="call it under torchrun, after init_process_group",
            )
        self.search = search
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        every = torch.ones(examples, dtype=torch.bool)
        self.every = Question(across="ranks", axes=(0,), changed=every, watched=every)

    def look(self, mode: Mode) -> None:
        """Add what leaks in the mode that the model is in.

        Raises:
            JobError: The model raised, here or on another rank.
        """
        search = self.search
        self.repeated = self._together(
            lambda: RepeatedPass(
                search.model, search.run, search.batch, called=search.is_loss
            )
        )
        search.repeatable &= self.repeated.again is None
        any(self._between(kind, mode) for kind in search.kinds)
        self._at_places(mode)
        search.passes += self.repeated.passes

    def _between(self, kind: Kind, mode: Mode) -> bool:
        """Whether outputs move where only other ranks' examples change."""
        search, again = self.search, self.repeated.again
        for half in range(2 * (self.world - 1).bit_length()):
            changes = (self.rank >> half // 2) % 2 == half % 2
            batch = search.batch
            if changes:
                batch = changed_batch(batch, self.every, kind, seed=SEED)
            outputs, refused = [], ""
            try:
                outputs = self.repeated.observe(batch)
            except JobError as error:
                refused = f"{kind}: {error.what}"
            moved = not changes and _moved(self.repeated.outputs, outputs, again)
            answers = self._gathered((refused, moved))
            if reasons := {text for text, _ in answers if text}:
                search.reasons += reasons - {*search.reasons}
                return False
            if any(moved for _, moved in answers):
                before = self.repeated.calls(search.batch)
                after = self.repeated.calls(batch)
                self._add("ranks", mode, before, after, watched=not changes)
                return True
        return False

    def _at_places(self, mode: Mode) -> None:
        """Whether outputs move where every rank takes the examples of the next."""
        search, place = self.search, (self.rank + 1) % self.world
        device = next((p.device for p in search.model.parameters()), "cpu")

        def next_ranks(value: Any) -> Any:
            return to_device(self._gathered(to_device(value, "cpu"))[place], device)

        batch = next_ranks(search.batch)
        mine, outputs = self._together(
            lambda: [
                self.repeated.observe(b, self._seeded) for b in (search.batch, batch)
            ]
        )
        theirs = next_ranks(mine)
        moved = _moved(theirs, outputs, self.repeated.again)
        if any(self._gathered(moved)):
            calls = self.repeated.calls(search.batch, self._seeded)
            values = next_ranks([(call.inputs, call.outputs) for call in calls])
            before = [
                Call(call.module, list(given), list(made))
                for call, (given, made) in zip(calls, values, strict=False)
            ]
            after = self.repeated.calls(batch, self._seeded)
            self._add("placement", mode, before, after, watched=True)

    def _add(
        self,
        across: Across,
        mode: Mode,
        before: list[Call],
        after: list[Call],
        *,
        watched: bool,
    ) -> None:
        """The leak, with the first place at which any rank sees it."""
        source = None
        if watched:
            source = first_source(before, after, None, self.every)
        seen = source and (source.call, source.output, *self.search.named(source))
        places = [place for place in self._gathered(seen) if place is not None]
        call, output, module, layer = min(
            places, default=(-1, 0, *self.search.named(None))
        )
        old, new = before[call].outputs[output], after[call].outputs[output]
        here = _squares(new, old)
        allowed = _squares(old, torch.zeros_like(old)) if across == "placement" else 0
        parts = self._gathered((here, allowed) if watched else (0.0, here))
        moved, may_move = sum(p[0] for p in parts), sum(p[1] for p in parts)
        self.search.add(
            Leak(
                across=across,
                module=module,
                layer=layer,
                modes=(mode,),
                strength=float(moved / may_move) if may_move else 0.0,
            )
        )

    def _together(self, act: Callable[[], Made]) -> Made:
        """What every rank makes; an error of any is raised on all, as none may wait."""
        made, failed = [], None
        try:
            made = [act()]
        except (JobError, SettingError) as error:
            failed = error
        for error in (failed, *self._gathered(failed)):
            if error is not None:
                raise error
        return made[0]

    def _gathered(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Every rank draws the same random numbers."""
        torch.manual_seed(SEED)
        random.seed(SEED)
        np.random.seed(SEED)
        yield


def _moved(
    before: list[Tensor], after: list[Tensor], again: list[Tensor] | None
) -> bool:
    """Whether anything moved."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return True
    repeats = [None] * len(before) if again is None else again
    return any(
        bool(difference(a, b, c).any())
        for a, b, c in zip(before, after, repeats, strict=True)
    )


def _squares(a: Tensor, b: Tensor) -> float:
    return float(difference(a, b).square().sum()) if a.shape == b.shape else 0.0
