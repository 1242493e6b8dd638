"""The gallery: one offline page with every claim that was run, and its pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import vl_convert

from rightbatch.core.json_io import write_text
from rightbatch.core.units import show_seconds
from rightbatch.lab.chapters import CHAPTERS
from rightbatch.lab.check import RELATIONS, Check, shown
from rightbatch.lab.claim import Claim, Language, Outcome
from rightbatch.report.frame import framed, templates
from rightbatch.report.vega import Spec

# What a page says of its own, beside the words of the claims.
LABELS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "Claims about batch size",
        "lead": "Each sentence is an experiment with a number that it must give, and "
        "with numbers that it must not give: what a wrong law would say.",
        "holds": "holds",
        "holds if": "holds if",
        "fails as written": "fails as written",
        "not reproduced": "not reproduced here",
        "claimed": "Claimed",
        "assumed": "Assumed",
        "seen": "Seen",
        "theory": "Theory",
        "source": "Source",
        "power": "Power",
        "check": "what must be seen",
        "expected": "theory",
        "measured": "measured (95 %)",
        "wrong": "turned down",
        "claim": "as written",
        "limit": "without the condition",
        "correction": "instead",
        "recorded": "on record",
        "run": "Run it",
    },
    "zh": {
        "title": "关于批量大小的论断",
        "lead": "每一句话都是一个实验：有一个必须得到的数，也有一些绝不能得到的数——"
        "错误的规律会给出的数。",
        "holds": "成立",
        "holds if": "有条件地成立：",
        "fails as written": "照原文不成立：",
        "not reproduced": "在此未能重现",
        "claimed": "说法",
        "assumed": "假设",
        "seen": "所见",
        "theory": "理论",
        "source": "出处",
        "power": "分辨力",
        "check": "必须看到什么",
        "expected": "理论值",
        "measured": "实测（95 %）",
        "wrong": "已排除",
        "claim": "照原文",
        "limit": "条件不满足时",
        "correction": "正确的说法",
        "recorded": "记录在案",
        "run": "自己运行",
    },
}
STATIC_WIDTH = 560  # pixels of a chart outside the page


def expected(check: Check) -> str:
    """What a check asks for, such as ``"1 +- 0.1"``.

    Example:
        >>> from rightbatch.lab.check import equals
        >>> expected(equals("slope", 0.5, 0.52, margin=0.05, wrong={"1/b": 1.0}))
        '0.5 ± 0.05'
    """
    bound = shown(check.theory)
    if check.relation != "equals":
        return f"{'≥' if RELATIONS[check.relation] == '>=' else '≤'} {bound}"
    return f"{bound} ± {shown(check.margin)}" if check.margin else bound


def turned_down(check: Check) -> str:
    """The planted errors of a check with their numbers, as text."""
    return "; ".join(f"{what}: {shown(v)}" for what, v in check.wrong.items())


def gallery(outcomes: Sequence[Outcome], language: Language = "en") -> str:
    """The page, as HTML that asks the network for nothing."""
    by_id = {outcome.claim.id: outcome for outcome in outcomes}
    chapters = [
        (
            chapter.name if language == "en" else chapter.name_zh,
            [by_id[claim.id] for claim in chapter.claims if claim.id in by_id],
        )
        for chapter in CHAPTERS
    ]
    labels = LABELS[language]
    body = (
        templates()
        .get_template("gallery.html.j2")
        .render(
            chapters=[(name, ran) for name, ran in chapters if ran],
            count=len(outcomes),
            verdicts=Counter(outcome.verdict for outcome in outcomes),
            say=labels,
            language=language,
            expected=expected,
            shown=shown,
            turned_down=turned_down,
            key=chart_key,
            caption=attrgetter("caption" if language == "en" else "caption_zh"),
            show_seconds=show_seconds,
            colour=_colour,
        )
    )
    charts = {
        chart_key(outcome.claim, number): chart.spec
        for outcome in outcomes
        for number, chart in enumerate(outcome.charts)
    }
    return framed(labels["title"], body, charts)


def save_gallery(
    outcomes: Sequence[Outcome], path: Path, language: Language = "en"
) -> Path:
    """Write the page.

    Raises:
        RunFolderError: It cannot be written.
    """
    write_text(path, gallery(outcomes, language))
    return path


def chart_key(claim: Claim, number: int) -> str:
    """The id of a chart's place on the page."""
    return f"{claim.id}-{number}"


def notebook_html(outcome: Outcome) -> str:
    """A claim for a notebook's cell: verdict, checks, and still pictures."""
    words = outcome.claim.en
    pictures = [svg(chart.spec) for chart in outcome.charts]
    return (
        templates()
        .get_template("claim_cell.html.j2")
        .render(
            outcome=outcome,
            words=words,
            pictures=pictures,
            say=LABELS["en"],
            expected=expected,
            shown=shown,
            turned_down=turned_down,
        )
    )


def svg(spec: Spec) -> str:
    """A chart as a still picture."""
    fixed: dict[str, Any] = spec | {"width": STATIC_WIDTH}
    return vl_convert.vegalite_to_svg(fixed)


def _colour(outcome: Outcome) -> str:
    """The class of a verdict's badge."""
    classes = {"holds": "sure", "holds if": "partly", "fails as written": "unsure"}
    return classes.get(outcome.verdict, "lost")
