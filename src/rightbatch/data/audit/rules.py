"""What an audit complains of, one function each."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number
from rightbatch.data.audit.mixing import Batches

WIDTH = 80  # columns
MIXED = 1.2  # shuffle-noise ratio above which we say so [assumed: 20 % more noise]
SLOW = 0.05  # share of a step that making indices may take [assumed]
BIASED = 5.0  # standard errors by which a label's share may be off [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """One thing that is not as it should be: what, seen, why, fix.

    Attributes:
        note: Whether it may well be meant.
    """

    what: str
    seen: str
    why: str
    fix: str
    note: bool = False

    def __str__(self) -> str:
        rows = (("seen", self.seen), ("why", self.why), ("fix", self.fix))
        what = textwrap.fill(f"note: {self.what}" if self.note else self.what, WIDTH)
        return "\n".join([what] + [_folded(label, text) for label, text in rows])


def mixing(noise: Estimate, steps: Batches, ours: bool) -> list[Concern]:
    """Examples that lie together come together.

    Args:
        noise: Of batch means.
        steps: The batches.
        ours: Whether it is a stream of ours.
    """
    if noise.low <= MIXED:
        return []
    size = len(steps[0])
    return [
        Concern(
            what=f"batches are not mixed: {show_number(noise.value)} x the noise of "
            "random ones",
            seen=f"variance of batch means {noise}, 1 is ideal, {size} no mixing",
            why="what lies together in the data set comes together: gradient noise, "
            "and a noise scale measured from it, are off by up to this factor",
            fix=(
                'order="shuffled"; '
                if ours
                else "shuffle=True, a larger shuffle "
                "buffer, or rightbatch.BatchStream; "
            )
            + "nothing, if the data set lies in random order",
        )
    ]


def bias(steps: Batches, names: np.ndarray, inverse: np.ndarray) -> list[Concern]:
    """A label is more frequent in batches than in the data."""
    index = inverse[np.concatenate(steps)]
    share = np.bincount(inverse) / len(inverse)
    found = np.bincount(index, minlength=len(names)) / len(index)
    error = np.sqrt(share * (1 - share) / len(index)) + 1 / len(index)
    worst = int(np.abs((found - share) / error).argmax())
    if abs(found[worst] - share[worst]) < BIASED * error[worst]:
        return []
    return [
        Concern(
            what="batches are composed differently from the data set",
            seen=f"label {names[worst]}: {found[worst]:.3%} of batches, "
            f"{share[worst]:.3%} of the data",
            why="without importance weights another objective is trained; with them "
            "the noise depends on the composition",
            fix="rightbatch.Strata gives weights with such batches; nothing, if the "
            "loss has them",
        )
    ]


def coverage(
    lost: int, repeated: int, length: int, held: list[int], batch: int, whole: bool
) -> list[Concern]:
    """An epoch loses or repeats examples, or ranks have unequal numbers."""
    found = []
    if whole and (lost or repeated):
        if repeated and lost:
            what = f"an epoch repeats {repeated} and leaves out {lost} of {length}"
            why = "as when examples are drawn with replacement, or by weight: some "
            why += "come often, others never"
            fix = "replacement=False; rightbatch.Strata, if it is for a rare class; "
        elif repeated:
            what = f"an epoch repeats {repeated} of {length} examples"
            why = "DistributedSampler repeats examples to give ranks equal numbers"
            fix = "rightbatch.BatchStream: uneven tails without padding; "
        elif lost < batch:
            what = f"an epoch leaves out {lost} of {length} examples"
            why = "drop_last leaves out the tail, others in every epoch if shuffled"
            fix = "drop_last=False, or rightbatch.BatchStream; "
        else:
            what = f"{lost} of {length} examples never come"
            why = "the sampler draws from a part of the data set"
            fix = "a sampler over all of it; "
        found.append(
            Concern(
                what=what,
                seen=f"{sum(held)} draws on {len(held)} ranks",
                why=why,
                fix=fix + "nothing, if it is meant",
                note=True,
            )
        )
    if max(held) > 1.01 * min(held) + len(held):
        found.append(
            Concern(
                what="ranks have different numbers of examples",
                seen=f"{min(held)} to {max(held)} in {'an epoch' if whole else 'all'}",
                why="a mean over ranks weighs examples unequally, and ranks may wait "
                "for each other forever at the end",
                fix="rightbatch.BatchStream on every rank",
            )
        )
    return found


def same_order(
    first: Batches, second: Batches, moved: Batches | None, epoch: int | None
) -> list[Concern]:
    """Two epochs are alike.

    Args:
        first: Head of an epoch.
        second: And of another.
        moved: The head after ``set_epoch``; None without such a thing.
        epoch: That the sampler stands in.
    """
    if not first or not second:
        return []
    head = np.concatenate(second)
    if not np.array_equal(np.concatenate(first)[: len(head)], head):
        return []
    if np.array_equal(head, np.sort(head)):
        return []  # in order on purpose: that is told as missing mixing
    other = moved is not None and not np.array_equal(np.concatenate(moved), head)
    if other and epoch:
        return []  # somebody calls it
    if other:
        what = "every epoch has the same order, unless set_epoch is called"
        fix = "sampler.set_epoch(epoch) before every epoch; nothing, if the loop does"
    else:
        what = "every epoch has the same order"
        fix = "a sampler that draws anew in every epoch"
    return [
        Concern(
            what=what,
            seen=f"two epochs began with the same {len(head)} examples"
            + ("" if epoch is None else f", epoch {epoch}"),
            why="the same examples meet in every epoch, and noise is not averaged out",
            fix=fix,
            note=other,
        )
    ]


def index_cost(index_time: float, step_time_s: float | None) -> list[Concern]:
    """Making indices takes a part of the step that can be felt."""
    if not step_time_s or index_time <= SLOW * step_time_s:
        return []
    return [
        Concern(
            what=f"making indices takes {index_time / step_time_s:.0%} of a step",
            seen=f"{index_time * 1e3:.2f} ms a batch, {step_time_s * 1e3:.2f} ms a "
            "step",
            why="it happens in the training process itself",
            fix="rightbatch.BatchStream, or a vectorised sampler",
        )
    ]


def _folded(label: str, text: str) -> str:
    """A labelled paragraph within 80 columns."""
    lines = textwrap.wrap(text, WIDTH - 8)
    return "\n".join(f"  {label if n == 0 else '':<5} {t}" for n, t in enumerate(lines))
