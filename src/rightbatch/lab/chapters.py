"""All claims by chapter, in the order in which a reader meets them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from rightbatch.core.errors import SettingError
from rightbatch.lab.claim import Claim
from rightbatch.lab.cost import COST
from rightbatch.lab.generalisation import GENERALISATION
from rightbatch.lab.physics import PHYSICS
from rightbatch.lab.rates import RATES
from rightbatch.lab.sampling import SAMPLING
from rightbatch.lab.touching import TOUCHING


@dataclass(frozen=True)
class Chapter:
    """Claims that belong together.

    Attributes:
        name: In English.
        name_zh: In Chinese.
        claims: In order.
    """

    name: str
    name_zh: str
    claims: tuple[Claim, ...]


# The texts whose sentences the claims are, by number.
TEXTS = {
    1: "Batch size: principles (批量大小：原理与机制)",
    2: "Mini-batch noise and its uses (小批量 SGD：应用与跨学科联系)",
    3: "Mini-batch gradient descent (小批量梯度下降)",
    4: "Large batches (大批量：应用与跨学科联系)",
    5: "Batch size, speed and convergence (批次大小对训练速度和收敛性的影响)",
}
CHAPTERS = (
    Chapter("What a mini-batch measures", "小批量测到了什么", SAMPLING),
    Chapter("What a step costs", "一步要花多少", COST),
    Chapter("Batch and learning rate", "批量与学习率", RATES),
    Chapter("Noise as temperature", "噪声就是温度", PHYSICS),
    Chapter("What the batch does to the result", "批量怎样影响结果", GENERALISATION),
    Chapter("When examples touch", "当样本相互接触", TOUCHING),
)
CLAIMS = {claim.id: claim for chapter in CHAPTERS for claim in chapter.claims}


def claim_named(name: str) -> Claim:
    """A claim by its id.

    Raises:
        SettingError: There is none; the nearest are named.

    Example:
        >>> claim_named("variance-over-b").verdict
        'holds'
    """
    if name not in CLAIMS:
        near = difflib.get_close_matches(name, CLAIMS, n=3, cutoff=0.4)
        fix = f"{', '.join(near)}? " if near else ""
        raise SettingError(
            f"there is no claim {name!r}", fix=f"{fix}rightbatch lab lists them all"
        )
    return CLAIMS[name]


def by_text() -> dict[int, list[Claim]]:
    """The claims of every text, in order; one may stand for sentences of several."""
    return {
        number: [c for c in CLAIMS.values() if number in _texts_of(c)]
        for number in TEXTS
    }


def _texts_of(claim: Claim) -> set[int]:
    return {int(text.split()[0]) for text in claim.texts}
