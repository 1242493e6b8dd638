"""The tables of rules in checks.md, made of the rules' own docstrings.

python docs/rule_tables.py     # after a rule was added, or its docstring changed
"""

from __future__ import annotations

import re
from pathlib import Path

from rightbatch.lint.rules import ALL_RULES, FAMILIES, meaning, remedy, rule_name

CHECKS = Path(__file__).parent / "checks.md"
BEGIN, END = "<!-- rules: begin -->", "<!-- rules: end -->"


def tables() -> str:
    """A heading and a table for every family of rules.

    A code leads to the rule's page on the site; `docs/hooks.py` makes link and page.
    """
    parts = []
    for family, title in FAMILIES.items():
        codes = sorted(code for code in ALL_RULES if code.startswith(family))
        rows = [
            f"| {c} | {rule_name(c)} | {_cell(meaning(c))} | {_cell(remedy(c))} |"
            for c in codes
        ]
        head = ["| code | rule | silent where | if not |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([f"## {title}", "", *head, *rows]))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def with_tables(text: str) -> str:
    """The page with its tables made anew."""
    between = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    made = "\n\n".join(part for part in (BEGIN, tables(), END) if part)
    return between.sub(lambda _: made, text)


if __name__ == "__main__":
    CHECKS.write_text(with_tables(CHECKS.read_text(encoding="utf-8")), encoding="utf-8")
