"""All rules of the linter by code, and what their docstrings say.

A rule is one function `(Probe) -> Finding | None`, silent where what the first line of
its docstring says is true; the rest says why it matters and what to do. Its page in the
docs, `--explain` and `--list-rules` are made of that docstring.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from rightbatch.core.errors import SettingError
from rightbatch.data.audit.loader_findings import LOADER_RULES
from rightbatch.lint.averaging_rules import AVERAGING_RULES
from rightbatch.lint.job_rules import JOB_RULES
from rightbatch.lint.machine_rules import MACHINE_RULES
from rightbatch.lint.normalization_rules import NORMALIZATION_RULES
from rightbatch.lint.probe import Rule
from rightbatch.lint.recipe_rules import RECIPE_RULES
from rightbatch.lint.touching_rules import TOUCHING_RULES

RULES: dict[str, Rule] = {
    **JOB_RULES,
    **NORMALIZATION_RULES,
    **TOUCHING_RULES,
    **AVERAGING_RULES,
    **RECIPE_RULES,
    **MACHINE_RULES,
}
# Those that look at nothing but what `tune` measured: a run folder is enough.
MEASURED_RULES = ("RB603", "RB604", "RB605", "RB606")
# What a code's first digit says: each is a part of docs/checks.md.
FAMILIES = {
    "RB1": "The job itself",
    "RB2": "The loader",
    "RB3": "Examples that touch",
    "RB4": "The loss as an average",
    "RB5": "The recipe",
    "RB6": "Data and machine",
}
# What can be explained: the rules of loaders belong to `rb.audit`, which runs them.
ALL_RULES: dict[str, Callable[..., Any]] = {**RULES, **LOADER_RULES}


def rule_name(code: str) -> str:
    """The rule's name, such as ``"mean-loss"``.

    Example:
        >>> rule_name("RB105")
        'mean-loss'
    """
    return ALL_RULES[code].__name__.strip("_").replace("_", "-")


def meaning(code: str) -> str:
    """One line: what is true where the rule is silent."""
    return explanation(code).splitlines()[0]


def remedy(code: str) -> str:
    """What to do, as one line of text.

    Example:
        >>> remedy("RB305")
        'LayerNorm or GroupNorm; statistics over all ranks.'
    """
    parts = explanation(code).split("\n\nFix: ")
    return parts[1].split("\n\n")[0].replace("\n", " ")


def explanation(code: str) -> str:
    """The docstring without what it says of arguments."""
    text = inspect.getdoc(ALL_RULES[code]) or rule_name(code)
    return re.split(r"\n+(?:Args|Raises|Returns):\n", text)[0].rstrip()


def page(code: str) -> str:
    """A rule's page, as Markdown: its title and its explanation.

    Raises:
        SettingError: No rule has this code.

    Example:
        >>> print(page("RB105").splitlines()[0])
        # RB105: mean-loss
    """
    if code not in ALL_RULES:
        raise SettingError(
            f"there is no rule {code}",
            fix="rightbatch check --list-rules shows them all",
        )
    return f"# {code}: {rule_name(code)}\n\n{explanation(code)}\n"
