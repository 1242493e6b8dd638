"""A claim: a sentence of the texts made an experiment, in words and numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from rightbatch.core.json_io import to_plain
from rightbatch.core.progress import Phase, Progress
from rightbatch.lab.check import RELATIONS, Check, Verdict, shown, verdict
from rightbatch.report.vega import Spec

T = TypeVar("T")
Language = Literal["en", "zh"]


@dataclass(frozen=True, kw_only=True)
class Words:
    """A claim in one language, for a reader who is new to it.

    Attributes:
        title: A few words.
        claimed: What the texts say.
        assumed: Under which assumptions it follows.
        seen: What the experiment does and shows.
        answer: After "holds if" or "fails as written": the condition, or what is true.
    """

    title: str
    claimed: str
    assumed: str
    seen: str
    answer: str = ""


@dataclass(frozen=True)
class Trial:
    """How an experiment is asked to run.

    Attributes:
        seed: Of all its random numbers.
        full: Whether at full size, where that takes longer than some seconds.
        phase: Told how far it is.
    """

    seed: int
    full: bool
    phase: Phase

    def size(self, reduced: T, full: T) -> T:
        """One of two sizes."""
        return full if self.full else reduced

    def tell(self, text: str) -> None:
        """How far it is, in a few words."""
        self.phase.update(text)


@dataclass(frozen=True)
class Chart:
    """A picture and what it shows.

    Attributes:
        caption: One sentence in English.
        caption_zh: The same in Chinese.
        spec: A Vega-Lite specification.
    """

    caption: str
    caption_zh: str
    spec: Spec


@dataclass(frozen=True)
class Seen:
    """What an experiment gave: its checks and its pictures."""

    checks: tuple[Check, ...]
    charts: tuple[Chart, ...]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence about batch size that can fail.

    Attributes:
        id: Such as ``"escape-time"``.
        texts: The sentences of the texts it stands for, as ``"1 text: section"``.
        papers: Author, year, arXiv id of the formulas.
        theory: The formula, in plain text.
        verdict: What it has been found to come to.
        seconds: About so long at the reduced size, on two cores.
        power: What the reduced size can tell, and what the full one adds.
        en: Its words in English.
        zh: The same in Chinese, the language of the texts.
        run: The experiment.
    """

    id: str
    texts: tuple[str, ...]
    papers: tuple[str, ...] = ()
    theory: str
    verdict: Verdict
    seconds: float
    power: str
    en: Words
    zh: Words
    run: Callable[[Trial], Seen]

    def words(self, language: Language) -> Words:
        """In English, or in Chinese."""
        return self.en if language == "en" else self.zh


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A claim that has been run.

    Attributes:
        claim: Which.
        checks: Theory beside what was measured.
        charts: Its pictures.
        seed: It ran under.
        full: Whether at full size.
        seconds: It took.
    """

    claim: Claim
    checks: tuple[Check, ...]
    charts: tuple[Chart, ...]
    seed: int
    full: bool
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """What was found here."""
        return verdict(self.checks)

    @property
    def as_recorded(self) -> bool:
        """Whether it is the verdict on record, by checks that tell wrong laws apart."""
        blind = any(check.missed for check in self.checks)
        return self.verdict == self.claim.verdict and not blind

    def to_plain(self) -> dict[str, Any]:
        """For JSON: all but words and pictures."""
        return {
            "id": self.claim.id,
            "verdict": self.verdict,
            "recorded": self.claim.verdict,
            "checks": [
                to_plain(check) | {"passes": check.passes, "missed": check.missed}
                for check in self.checks
            ],
            "seed": self.seed,
            "full": self.full,
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        words = self.claim.en
        stop = ": " if self.verdict == "fails as written" else " "
        answer = f"{stop}{words.answer}" if words.answer else ""
        lines = [f"{self.claim.id}: {self.verdict}{answer}"]
        for check in self.checks:
            margin = f" +- {shown(check.margin)}" if check.margin else ""
            relation = RELATIONS[check.relation]
            state = "seen" if check.passes else "not seen"
            lines += [
                f"  {check.what} ({check.part})",
                f"    {shown(check.measured)}, {state}: "
                f"{relation} {shown(check.theory)}{margin}",
            ]
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """In a notebook: its words, checks and charts."""
        from rightbatch.lab.gallery import notebook_html

        return {"text/plain": str(self), "text/html": notebook_html(self)}


def run_claim(
    claim: Claim, *, seed: int = 0, full: bool = False, progress: Progress | None = None
) -> Outcome:
    """Run one experiment.

    Args:
        claim: Which.
        seed: Of all its random numbers.
        full: At full size.
        progress: Told what is going on.
    """
    began = time.monotonic()
    phases = progress or Progress()
    with phases.phase(claim.id, claim.seconds) as phase, _one_thread():
        seen = claim.run(Trial(seed, full, phase))
        outcome = Outcome(
            claim=claim,
            checks=seen.checks,
            charts=seen.charts,
            seed=seed,
            full=full,
            seconds=time.monotonic() - began,
        )
        phase.summary = outcome.verdict
    return outcome


@contextmanager
def _one_thread() -> Iterator[None]:
    """The models here are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
