"""The pages of claims, in both languages, made of the claims and a run of them all.

rightbatch lab --all --out DIR && cp DIR/lab.json docs/lab.json
python docs/claim_pages.py     # after a claim or the run has changed
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rightbatch.core.estimate import Estimate
from rightbatch.core.json_io import from_plain
from rightbatch.lab.chapters import CHAPTERS
from rightbatch.lab.check import Check, shown
from rightbatch.lab.claim import Claim, Language
from rightbatch.lab.gallery import LABELS, expected, turned_down

DOCS = Path(__file__).parent
LEDGER = DOCS / "lab.json"
PAGES: dict[Language, Path] = {"en": DOCS / "claims.md", "zh": DOCS / "claims.zh.md"}
HEADS: dict[Language, str] = {
    "en": """# {title}

{lead} `rightbatch lab ID` runs one on your machine, `rightbatch lab --all` all of them
({minutes} minutes on two cores), and writes a page with every chart. The numbers below
are of one such run. [中文](claims.zh.md)

{counts}
""",
    "zh": """# {title}

{lead}`rightbatch lab ID` 在你的机器上运行其中一个，
`rightbatch lab --all --language zh` 运行全部（两个核心约 {minutes} 分钟），
并写出一个带有全部图表的离线页面。以下数字来自一次这样的运行。[English](claims.md)

{counts}
""",
}


def page(language: Language, ledger: dict[str, Any]) -> str:
    """Every claim with its words, verdict and numbers, as Markdown."""
    ran = {row["id"]: row for row in ledger["claims"]}
    say = LABELS[language]
    counts = Counter(row["verdict"] for row in ran.values())
    seconds = sum(row["seconds"] for row in ran.values())
    head = HEADS[language].format(
        title=say["title"],
        lead=say["lead"],
        minutes=max(round(seconds / 60), 1),
        counts=" · ".join(f"**{n}** {say[v].rstrip('：')}" for v, n in counts.items()),
    )
    parts = [head]
    for chapter in CHAPTERS:
        parts.append(f"## {chapter.name if language == 'en' else chapter.name_zh}\n")
        parts += [_claim(claim, ran[claim.id], language) for claim in chapter.claims]
    return "\n".join(parts)


def _claim(claim: Claim, row: dict[str, Any], language: Language) -> str:
    words, say = claim.words(language), LABELS[language]
    stop = ": " if language == "en" and row["verdict"] == "fails as written" else " "
    answer = f"{stop}{words.answer}" if words.answer else ""
    lines = [
        f'<a id="{claim.id}"></a>',
        "",
        f"### {words.title}",
        "",
        f"**{say[row['verdict']]}{answer}** (`{claim.id}`)",
        "",
        f"- {say['claimed']}: {words.claimed}",
        f"- {say['assumed']}: {words.assumed}",
        f"- {say['seen']}: {words.seen}",
        f"- {say['theory']}: `{claim.theory}`",
        f"- {say['source']}: {_plain('; '.join(claim.texts + claim.papers))}",
        "",
        f"| {say['check']} | {say['expected']} | {say['measured']} | {say['wrong']} |",
        "| --- | --- | --- | --- |",
    ]
    for plain in row["checks"]:
        check = read_check(plain)
        cells = (
            f"{check.what} ({say[check.part]})",
            expected(check),
            f"{'✓' if check.passes else '✗'} {shown(check.measured)}",
            turned_down(check),
        )
        lines.append("| " + " | ".join(_plain(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def read_check(plain: dict[str, Any]) -> Check:
    """A check as the ledger holds it."""
    fields = {k: v for k, v in plain.items() if k not in ("passes", "missed")}
    return Check(**fields | {"measured": from_plain(Estimate, plain["measured"])})


def _plain(text: str) -> str:
    """As text in Markdown, also in a cell of a table."""
    for sign in "\\|*_<":
        text = text.replace(sign, f"\\{sign}")
    return text


def write() -> None:
    """Write both pages."""
    ledger = json.loads(LEDGER.read_text(encoding="utf-8"))
    for language, path in PAGES.items():
        path.write_text(page(language, ledger), encoding="utf-8")


if __name__ == "__main__":
    write()
