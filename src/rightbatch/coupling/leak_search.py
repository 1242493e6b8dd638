"""The search for leaks in one mode of a model: change, compare, locate, measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.trees import tensors
from rightbatch.coupling.leak import Leak, Mode
from rightbatch.coupling.loss_halves import loss_interaction
from rightbatch.coupling.module_trace import Call, Source, first_source
from rightbatch.coupling.movement import (
    difference,
    layouts,
    moved_positions,
    shares,
    touched,
)
from rightbatch.coupling.perturbation import (
    SEED,
    Kind,
    Question,
    changed_batch,
    has_floats,
    one_row,
)
from rightbatch.coupling.random_draws import RandomDraws
from rightbatch.coupling.repeated_pass import RepeatedPass, Run

ROWS = 8  # changed one at a time for the strength [assumed]


@dataclass(frozen=True, slots=True)
class Hit:
    """A change that moved what it should not.

    Attributes:
        question: What was changed.
        kind: How.
        lookahead: For time: the most steps ahead that were seen.
    """

    question: Question
    kind: Kind
    lookahead: float | None = None


class SetAsideError(Exception):
    """A kind of change that tells nothing about this model."""


class LeakSearch:
    """What is tried on a model, and what was found in any mode.

    Args:
        model: Its mode is the caller's.
        batch: As it is.
        run: What is done with it.
        around: What a leak outside of all modules is called; ``""``: the model.
        is_loss: Whether ``run`` is a loss.
        kept: A tensor of the batch that stays as it is.

    Attributes:
        found: Leaks by kind and place.
        passes: Forward passes made.
        repeatable: Whether equal passes agree to the bit.
        reasons: Why kinds of change could not be tried.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        run: Run,
        *,
        around: str,
        is_loss: bool,
        kept: Tensor | None,
    ) -> None:
        self.model, self.batch, self.run = model, batch, run
        self.around, self.is_loss, self.kept = around, is_loss, kept
        self.kinds: list[Kind] = ["another example", "noise"]
        if has_floats(batch):
            self.kinds.append("large noise")
        self.names = {id(m): name for name, m in model.named_modules()}
        self.found: dict[tuple[str, str], Leak] = {}
        self.reasons: list[str] = []
        self.passes, self.repeatable = 0, True

    def look(self, mode: Mode, asked: Sequence[Sequence[Question]]) -> None:
        """Add what leaks in the mode that the model is in.

        Args:
            mode: Its name.
            asked: Questions, those about the same thing together; examples first.

        Raises:
            SettingError: Nothing can be observed, or nothing changed.
        """
        self.repeated = RepeatedPass(
            self.model, self.run, self.batch, called=self.is_loss
        )
        self.set_aside: dict[Kind, Exception] = {}
        self.repeatable &= self.repeated.again is None
        leaking = False
        for questions in asked:
            if not self._is_observed(questions[0]):
                continue
            hit = self._first_hit(questions)
            if hit is not None:
                leaking = True
                self.add(self._leak(hit, mode))
        if self.is_loss and not leaking:
            self._look_at_loss(mode)
        self.passes += self.repeated.passes

    def _is_observed(self, question: Question) -> bool:
        if any(layouts(t, question) for t in self.repeated.outputs):
            return True
        if self.is_loss and question.across == "examples":
            return False  # then the loss tells
        shapes = ", ".join(str(tuple(t.shape)) for t in self.repeated.outputs[:4])
        raise SettingError(
            f"no output can be told apart by {question.across}",
            seen=f"outputs of shape {shapes or 'none'}, and "
            f"{tuple(question.changed.shape)} {question.across} in the batch",
            why="what moves is looked for among the outputs of the others",
            fix="pass call=: (model, batch) -> outputs with the batch's axes",
        )

    def _first_hit(self, questions: Sequence[Question]) -> Hit | None:
        """The first change that moves what it should not, of any kind."""
        for kind in self.kinds:
            if kind in self.set_aside:
                continue
            try:
                hits = self._hits(questions, kind)
                first = next(hits, None)
                if first is None:
                    continue
                if first.lookahead is None:
                    return first
                return _furthest([first, *hits])
            except (JobError, SetAsideError) as error:
                self.set_aside[kind] = error
                text = error.what if isinstance(error, JobError) else str(error)
                reason = f"{kind}: {text}"
                if reason not in self.reasons:
                    self.reasons.append(reason)
        self._check_tried()
        return None

    def _check_tried(self) -> None:
        """Refuse to say "no leak" where nothing could be tried."""
        if len(self.set_aside) < len(self.kinds):
            return
        for error in self.set_aside.values():
            if isinstance(error, JobError):
                raise error
        raise SettingError(
            "no change of the batch tells anything",
            seen="; ".join(self.reasons),
            why="outputs are compared with those of a changed batch",
            fix="give a batch of different examples; leave out dropout (p = 0) where "
            "its shapes depend on the data",
        )

    def _hits(self, questions: Sequence[Question], kind: Kind) -> Iterator[Hit]:
        changes = False
        for question in questions:
            batch = self._changed(question, kind)
            pairs = zip(tensors(batch), tensors(self.batch), strict=True)
            if all(new is old or torch.equal(new, old) for new, old in pairs):
                continue
            changes = True
            moved = self._moved(self.repeated.observe(batch))
            if not any(touched(m, question) for m in moved):
                continue
            self._check_draws(batch)
            ahead = _lookahead(moved, question) if question.across == "time" else None
            yield Hit(question, kind, ahead)
        if not changes:
            raise SetAsideError("leaves the batch as it is")

    def _changed(self, question: Question, kind: Kind) -> Any:
        return changed_batch(self.batch, question, kind, seed=SEED, kept=self.kept)

    def _moved(self, after: list[Tensor]) -> list[Tensor]:
        before, again = self.repeated.outputs, self.repeated.again
        if [t.shape for t in before] != [t.shape for t in after]:
            raise SetAsideError("gives outputs of other shapes")
        if any(t.isnan().any() for t in after):
            raise SetAsideError("gives outputs that are not a number")
        repeats = [None] * len(before) if again is None else again
        return [
            difference(a, b, c) for a, b, c in zip(before, after, repeats, strict=True)
        ]

    def _check_draws(self, batch: Any) -> None:
        """Refuse a change that random numbers of other shapes are drawn for.

        An example would meet other numbers than before, which looks like a leak.
        """
        before, after = RandomDraws(), RandomDraws()
        self.repeated.result(self.batch, lambda: before)
        self.repeated.result(batch, lambda: after)
        if before.shapes != after.shapes:
            raise SetAsideError("draws other random numbers")

    def _leak(self, hit: Hit, mode: Mode) -> Leak:
        """Where it begins, and how strong it is there."""
        before = self.repeated.calls(self.batch)
        again = None if self.repeated.again is None else self.repeated.calls(self.batch)
        after = self.repeated.calls(self._changed(hit.question, hit.kind))
        source = first_source(before, after, again, hit.question)
        module, layer = self.named(source)
        return Leak(
            across=hit.question.across,
            module=module,
            layer=layer,
            modes=(mode,),
            strength=self._strength(hit, before, source),
            lookahead=hit.lookahead,
        )

    def named(self, source: Source | None) -> tuple[str, str]:
        """A module's name and class; without one, of what is around all modules."""
        if source is not None:
            name = self.names.get(id(source.module), "(outside the model)")
            return name, type(source.module).__name__
        around = self.run if self.around else type(self.model)
        return self.around, getattr(around, "__name__", type(around).__name__)

    def _strength(self, hit: Hit, before: list[Call], source: Source | None) -> float:
        """Movement of what is watched over that of what is changed, where it begins."""
        attempts: list[tuple[list[Question], Kind]] = [([hit.question], hit.kind)]
        if hit.question.across == "examples":
            count = len(hit.question.changed)
            rows = range(0, count, -(-count // ROWS))
            single = [one_row(row, count) for row in rows]
            attempts = [(single, "small noise"), (single, hit.kind), *attempts]
        for questions, kind in attempts:
            parts = [self._shares(q, kind, before, source) for q in questions]
            watched, changed = _sums(parts)
            if watched:
                return watched / changed if changed else math.inf
        return 0.0

    def _shares(
        self,
        question: Question,
        kind: Kind,
        before: list[Call],
        source: Source | None,
    ) -> tuple[float, float]:
        batch = self._changed(question, kind)
        if source is not None:
            calls = self.repeated.calls(batch)[source.call :][:1]
            old = before[source.call].outputs[source.output :][:1]
            new = [t for call in calls for t in call.outputs[source.output :][:1]]
        else:
            old, new = self.repeated.outputs, self.repeated.observe(batch)
        pairs = [(a, b) for a, b in zip(old, new, strict=False) if a.shape == b.shape]
        return _sums(shares(difference(a, b), question) for a, b in pairs)

    def _look_at_loss(self, mode: Mode) -> None:
        kinds = [kind for kind in self.kinds[:2] if kind not in self.set_aside]
        share = loss_interaction(self.repeated, kinds)
        if share:
            module, layer = self.named(None)
            self.add(
                Leak(
                    across="loss",
                    module=module,
                    layer=layer,
                    modes=(mode,),
                    strength=share,
                )
            )

    def add(self, leak: Leak) -> None:
        """One leak for each kind and place, with its modes; the inner of two places."""
        for key, known in self.found.items():
            if key[0] == leak.across and _nested(key[1], leak.module):
                ahead = [x.lookahead for x in (known, leak) if x.lookahead is not None]
                self.found[key] = replace(
                    max(known, leak, key=lambda each: len(each.module)),
                    modes=(*known.modes, *leak.modes),
                    lookahead=max(ahead, default=None),
                )
                return
        self.found[leak.across, leak.module] = leak


def _nested(first: str, second: str) -> bool:
    """Whether two names are those of one module, or of one inside the other.

    A layer that takes a fast path in eval mode calls none of those inside it.
    """
    outer, inner = sorted([first, second], key=len)
    return outer == inner or (bool(outer) and inner.startswith(f"{outer}."))


def _lookahead(moved: list[Tensor], question: Question) -> float:
    """Steps from the first output that moved to the first input that changed."""
    begins = int(question.changed.nonzero()[0])
    firsts = [
        max(int(positions.nonzero()[0]) for positions in found)
        for tensor in moved
        if tensor.any() and (found := moved_positions(tensor, question))
    ]
    return float(begins - min(firsts))


def _furthest(hits: list[Hit]) -> Hit:
    """The hit that sees furthest; all steps, if the last one reaches the first."""
    latest = hits[-1]
    if latest.lookahead == int(latest.question.changed.nonzero()[0]):
        return replace(latest, lookahead=math.inf)
    return max(hits, key=lambda hit: hit.lookahead or 0.0)


def _sums(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    first = second = 0.0
    for a, b in pairs:
        first, second = first + a, second + b
    return first, second
