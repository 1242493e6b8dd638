"""What an audit complains of, one function each."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np

from rightbatch.estimate import Estimate
from rightbatch.feed.mixing import Batches
from rightbatch.units import show_number

WIDTH = 80  # columns
MIXED = 1.2  # shuffle-noise ratio above which we say so [assumed: 20 % more noise]
SLOW = 0.05  # share of a step that making indices may take [assumed]
BIASED = 5.0  # standard errors by which a label's share may be off [assumed]
PADDED = 0.2  # share of padding above which we say so [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """One thing that is not as it should be: what, seen, why, fix."""

    what: str
    seen: str
    why: str
    fix: str

    def __str__(self) -> str:
        rows = (("seen", self.seen), ("why", self.why), ("fix", self.fix))
        return "\n".join([self.what] + [_folded(label, text) for label, text in rows])


def mixing(noise: Estimate, steps: Batches, length: int) -> list[Concern]:
    """Examples that lie together come together."""
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
            fix="shuffle=True, a larger shuffle buffer, or rightbatch.BatchStream; "
            "nothing, if the data set lies in random order",
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
    lost: int, repeated: int, length: int, held: list[int], whole: bool
) -> list[Concern]:
    """An epoch loses or repeats examples, or ranks have unequal numbers."""
    found = []
    if whole and (lost or repeated):
        found.append(
            Concern(
                what=f"an epoch loses {lost} and repeats {repeated} of {length} "
                "examples",
                seen=f"{sum(held)} draws on {len(held)} ranks",
                why="drop_last loses the tail, DistributedSampler repeats examples to "
                "give ranks equal numbers, sampling with replacement does both",
                fix="drop_last=False, or rightbatch.BatchStream: uneven tails without "
                "padding; nothing, if it is meant",
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
    loader: Any, drawn: list[Batches], again: list[Batches]
) -> list[Concern]:
    """Two epochs are alike."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", None)
    first = np.concatenate(drawn[0])[:4096]
    second = np.concatenate(again[0])[: len(first)]
    same = np.array_equal(first[: len(second)], second)
    if not same or not len(first) or np.array_equal(second, np.sort(second)):
        return []  # in order on purpose: that is told as missing mixing
    epoch = getattr(inner, "epoch", None)
    fix = "a sampler that draws anew in every epoch"
    if hasattr(inner, "set_epoch"):
        fix = "set_epoch(epoch) of the sampler before every epoch; nothing, if the "
        fix += "loop does so"
    return [
        Concern(
            what="every epoch has the same order",
            seen="two epochs began with the same "
            f"{len(second)} examples" + ("" if epoch is None else f", epoch {epoch}"),
            why="the same examples meet in every epoch, and noise is not averaged out",
            fix=fix,
        )
    ]


def waste(
    padding: float | None, index_time: float, step_time_s: float | None
) -> list[Concern]:
    """Padding, or time for indices."""
    found = []
    if padding is not None and padding > PADDED:
        found.append(
            Concern(
                what=f"{padding:.0%} of all tokens are padding",
                seen="longest example times number of examples, in every batch",
                why="padding costs time and memory and teaches nothing",
                fix="order=rightbatch.Tokens(lengths, budget=...)",
            )
        )
    if step_time_s and index_time > SLOW * step_time_s:
        found.append(
            Concern(
                what=f"making indices takes {index_time / step_time_s:.0%} of a step",
                seen=f"{index_time * 1e3:.2f} ms a batch, "
                f"{step_time_s * 1e3:.2f} ms a step",
                why="it happens in the training process itself",
                fix="rightbatch.BatchStream, or a vectorised sampler",
            )
        )
    return found


def _folded(label: str, text: str) -> str:
    """A labelled paragraph within 80 columns."""
    lines = textwrap.wrap(text, WIDTH - 8)
    return "\n".join(f"  {label if n == 0 else '':<5} {t}" for n, t in enumerate(lines))
