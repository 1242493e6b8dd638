"""Three places where a training step has groups of examples to compare."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rightbatch.noise.capture.group_norms import Key, Tally
from rightbatch.noise.capture.layout import Groups
from rightbatch.noise.capture.listening import Listener, test_independence
from rightbatch.noise.micro_batches import MicroBatches
from rightbatch.noise.rank_gradients import Ranks, listen_to_ddp, listen_to_fsdp
from rightbatch.noise.statistics.optimizer_metric import Lens
from rightbatch.noise.statistics.samples import (
    Sample,
    from_groups,
    from_tally,
    metric_pairs,
)

UNLIKE = (
    "the batch cannot be cut into runs of equal composition: the number of each "
    "stratum has no common divisor with the others (Strata(..., multiple=8) gives one)"
)
LensFor = Callable[[tuple[int, ...]], Lens | None]


class Source:
    """Where groups come from. One measured step at a time goes through it.

    Attributes:
        name: For people.
        why: Why this one was chosen.
        missing: Parameters that are not seen, by index, and why.
        verified: Whether it was tested that examples are seen where they belong.
        trouble: Why the last step gave nothing.
    """

    name = ""
    why = ""

    def __init__(self, parameters: Sequence[Tensor], population: int | None) -> None:
        self.parameters, self.population = parameters, population
        self.missing: dict[int, str] = {}
        self.verified: bool | None = None
        self.trouble = ""
        self.lens: Lens | None = None

    @property
    def waiting(self) -> bool:
        """Whether the model was called, and no gradient has come back yet."""
        return False

    def begin(self, lens_for: LensFor, usual: tuple[int, ...]) -> None:
        """A measured step begins; ``usual``: the last step's micro-batches."""

    def forward_begins(self, batch: int) -> None:
        """The model is called with so many examples."""

    def forward_ends(self, output: Any) -> None:
        """The model has returned."""

    def finish(self, batches: Sequence[int], scale: float) -> Sample | None:
        """All gradients of the step are there; ``scale``: what the loss was scaled by.

        Returns:
            The sample, or None, with the reason in ``trouble``.
        """
        raise NotImplementedError

    def cancel(self) -> None:
        """The step came to nothing."""

    def detach(self) -> None:
        """Take every hook away."""


def _scaled(sample: Sample, scale: float, lens: Lens | None, found: Any) -> Sample:
    square = scale * scale
    return replace(
        sample,
        signal=sample.signal / square,
        noise=sample.noise / square,
        total=sample.total / square,
        metrics={} if lens is None else metric_pairs(lens, found, scale),
        gain_batch=0 if lens is None else lens.gain_batch,
        between=sample.between / square,
    )


class Inside(Source):
    """Groups told apart inside the weight gradients of one ordinary batch."""

    name = "groups inside the weight gradient"
    why = "one batch per step: its groups are told apart in the backward pass"

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Tensor],
        population: int | None,
        groups: int | None,
        verify: bool,
    ) -> None:
        super().__init__(parameters, population)
        self.groups, self.verify = groups, verify
        self.alike: Callable[[int, int], int] | None = None  # of a composed batch
        self.coupled = False
        self._listener = Listener(model, parameters)
        self._shared: frozenset[Key] = frozenset()
        self._untied: frozenset[Key] = frozenset()
        self._tally: Tally | None = None
        self._lens_for: LensFor = lambda sizes: None
        self._unchecked = True
        self.neighbours = Neighbours()
        self._cut: Cut = ""
        self.only: frozenset[int] | None = None

    @property
    def waiting(self) -> bool:
        return self._tally is not None and not self._tally.started

    def begin(self, lens_for: LensFor, usual: tuple[int, ...]) -> None:
        self._lens_for, self._tally, self.trouble = lens_for, None, ""

    def forward_begins(self, batch: int) -> None:
        tally = self._tally
        if tally is not None and tally.started:
            self.trouble = "a second micro-batch"
            return
        if batch < 2:
            self.trouble = "a batch of one example has no groups"
            return
        if tally is None or tally.batch != batch:
            count = batch if self.groups is None else min(self.groups, batch)
            if self.alike is not None:
                count = self.alike(batch, count)
                if count < 2:
                    self.trouble = UNLIKE
                    return
            self.lens = self._lens_for(Groups.of(batch, count).sizes)
            order, self._cut = None, ""
            if self.lens is None and self.only is None and self.alike is None:
                self._cut = self.neighbours.turn()
            if self._cut == "across":
                order = Groups.of(batch, count).strided(self.parameters[0].device)
            tally = Tally(batch, count, self._shared, self._untied, self.lens, order)
            tally.coarse = bool(self._cut) or self.alike is not None
            self._tally = tally
        self._listener.enter(tally, self.only)

    def forward_ends(self, output: Any) -> None:
        mode = self._listener.mode
        self._listener.leave()
        if mode is None or self._tally is None or mode.tally is not self._tally:
            return
        self.coupled |= mode.coupled
        if self.verify and self._unchecked and not self.coupled and not self.trouble:
            self._test(mode, output)

    def _test(self, mode: Any, output: Any) -> None:
        assert self._tally is not None
        tally, sites = self._tally, self._listener.sites
        try:
            failed = test_independence(mode, output, tally.batch, tally.count)
        except RuntimeError:  # checkpointing of the older kind allows no such pass
            failed, self.verify = None, False
        self._shared, self._untied = tally.shared, tally.untied
        for index, seen in (failed or {}).items():
            sites.wrong[index] = sites.wrong.get(index, 0) + 1
            sites.refuted[index] = seen
            if sites.wrong[index] >= 3:
                sites.excluded[index] = seen
            self.trouble = "the layout of the batch is being found"
        self._unchecked = bool(failed)
        self.verified = None if failed is None else not failed

    def finish(self, batches: Sequence[int], scale: float) -> Sample | None:
        tally, self._tally = self._tally, None
        if tally is None:
            return None
        tally.close()
        self._listener.close()
        self._untied |= tally.surprises & self._shared
        self._shared |= tally.surprises
        self._listener.sites.excluded |= tally.conflicts
        excluded = self._listener.sites.excluded
        if any(key.index in excluded for key in tally.squares):
            self.trouble = "a parameter that cannot be seen was found"
        if tally.surprises or tally.conflicts:
            self.trouble = "parameters used more than once were found"
        if tally.differentiated:
            self.trouble = "the loss has gradients in it"
        if self.coupled:
            self.trouble = "BatchNorm mixes the examples of a batch"
        if len(batches) != 1 and not self.trouble:
            self.trouble = "a second micro-batch"
        if self.trouble:
            return None
        if not tally.squares:
            self.trouble = "no parameter enters an operation that can be seen into"
        if self.only is None and tally.order is None:
            self._note_missing(tally)
        if self.trouble:
            return None
        found = None if self.lens is None else self.lens.read()
        sample = from_tally(tally, len(self.parameters), self.population)
        if sample.finite:
            self.neighbours.add(sample.between, self._cut)
        return _scaled(sample, scale, self.lens, found)

    def _note_missing(self, tally: Tally) -> None:
        seen = {key.index for key in tally.squares}
        sites = self._listener.sites
        why = sites.refuted | sites.excluded
        self.missing = {
            i: why.get(i, "enters no operation we know")
            for i, p in enumerate(self.parameters)
            if i not in seen and p.requires_grad and p.grad is not None
        }
        if self.verified and any(i in sites.refuted for i in self.missing):
            self.verified = False

    def cancel(self) -> None:
        if self._tally is not None:
            self._tally.close()
        self._tally = None
        self._listener.leave()
        self._listener.close()

    detach = cancel


Cut = Literal["", "along", "across"]


@dataclass
class Neighbours:
    """Whether neighbouring examples are more alike than others.

    Now and then a measured step's groups are cut along the batch, and in the next one
    across it. If examples are independent both give the same noise; packed, sorted or
    repeated examples don't.
    """

    every: int = 8  # measured steps from one such pair to the next [assumed]
    count: int = 0
    alike: float | None = None
    _along: float = 0.0
    _ratios: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def turn(self) -> Cut:
        """How the next measured step's groups are cut; "": as is cheapest."""
        self.count += 1
        cuts: dict[int, Cut] = {self.every - 1: "along", 0: "across"}
        return cuts.get(self.count % self.every, "")

    def add(self, noise: float, cut: Cut) -> None:
        """The noise of one measured step."""
        if cut == "along":
            self._along = noise
        elif cut == "across" and noise > 0 and self._along > 0:
            self._ratios.append(self._along / noise)
            self.alike, self._along = self._decide(), 0.0

    def _decide(self) -> float | None:
        """How many times the noise along the batch is that across it, if not 1.

        None unless it differs by a quarter, and by four standard errors.
        """
        if len(self._ratios) < 8:
            return None
        logs = [math.log(r) for r in self._ratios]
        mean = statistics.mean(logs)
        error = statistics.stdev(logs) / math.sqrt(len(logs))
        if abs(mean) < math.log(1.25) or abs(mean) < 4 * error:
            return None
        return math.exp(mean)


class Accumulated(Source):
    """The micro-batches of an accumulated step."""

    name = "micro-batches of the accumulated step"
    why = "the step is accumulated: its micro-batches are groups already"

    def __init__(self, parameters: Sequence[Tensor], population: int | None) -> None:
        super().__init__(parameters, population)
        self._reader = MicroBatches(parameters)
        self._usual: tuple[int, ...] = ()

    def begin(self, lens_for: LensFor, usual: tuple[int, ...]) -> None:
        self.lens, self._usual, self.trouble = lens_for(usual), usual, ""
        self._reader = MicroBatches(self.parameters, self.lens)
        self._reader.open()

    def finish(self, batches: Sequence[int], scale: float) -> Sample | None:
        reader, count = self._reader, len(self.parameters)
        reader.close()
        if len(batches) < 2:
            self.trouble = "the step had one micro-batch only"
            return None
        if not reader.parts:
            self.trouble = "no gradient arrived"
            return None
        self.missing = dict.fromkeys(reader.skipped, "its gradient is sparse")
        zero = torch.zeros((), device=self.parameters[0].device)
        parts = torch.stack([reader.parts.get(i, zero) for i in range(count)])
        totals = torch.stack([reader.totals.get(i, zero) for i in range(count)])
        sample = from_groups(parts, totals, batches, self.population)
        lens = self.lens if tuple(batches) == self._usual else None
        found = None if lens is None else lens.read()
        return _scaled(sample, scale, lens, found)

    def cancel(self) -> None:
        self._reader.close()

    detach = cancel


class AcrossRanks(Source):
    """The gradients of the ranks of a distributed step."""

    name = "ranks"
    why = "the ranks' gradients are groups already, read on their way"

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Tensor],
        population: int | None,
        world: int,
    ) -> None:
        super().__init__(parameters, population)
        self.world, self.units = world, None
        self._ranks: Ranks
        if isinstance(model, DistributedDataParallel):
            self._ranks = listen_to_ddp(model, parameters)
        else:
            self._ranks, self.units = listen_to_fsdp(model)
        self.agreed = 0.0  # the largest of the ranks' wishes, told at `finish`
        self.wish = 0.0

    def begin(self, lens_for: LensFor, usual: tuple[int, ...]) -> None:
        self.trouble = ""
        self._ranks.clear()
        self._ranks.active = True
        sizes = (sum(usual),) * self.world
        self.lens = None if self.units is not None else lens_for(sizes)
        self._ranks.observer = self.lens

    def finish(self, batches: Sequence[int], scale: float) -> Sample | None:
        ranks = self._ranks
        ranks.active = False
        device = self.parameters[0].device
        found = {} if self.lens is None else self.lens.read()
        rows = [t for pair in found.values() for t in pair]
        flat = torch.cat(rows).double().tolist() if rows else []
        own = [float(sum(batches)), self.wish, float(ranks.twice)]
        parts, totals, more = ranks.gathered([*own, *flat], device)
        self.agreed = float(more[1]) / self.world
        if float(more[2]):
            self.trouble = "gradients were exchanged more than once in the step"
            return None
        size = float(more[0]) / self.world
        sample = from_groups(parts, totals, [round(size)] * self.world, self.population)
        if self.lens is None:
            return _scaled(sample, scale, None, None)
        values = more[3:].view(len(found), 2, -1)
        summed = {}
        for k, name in enumerate(found):
            first, second = values[k] / self.world
            # Every rank saw its own part, and all the same total.
            summed[name] = (first if name == "sign" else first * self.world), second
        return _scaled(sample, scale, self.lens, summed)

    def cancel(self) -> None:
        self._ranks.active = False
