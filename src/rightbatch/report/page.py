"""The page: one offline HTML file that shows the answer and how it was found."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from rightbatch.core.estimate import Estimate
from rightbatch.core.json_io import to_plain, write_text
from rightbatch.core.units import show_bytes, show_number, show_seconds
from rightbatch.plan.choice import BEYOND, Choice
from rightbatch.plan.verdict import cost_unit
from rightbatch.report.charts import all_charts
from rightbatch.report.race_rows import last_level, race_rows
from rightbatch.training.plan import Plan
from rightbatch.training.trace import TraceRow

MOST_BYTES = 2_000_000


@dataclass(frozen=True)
class Page:
    """A report, ready to be saved.

    Attributes:
        choice: What was decided, with all it was decided from.
        plan: The same, explained.
        rows: The trace of a training run in the same folder, if there is one.
    """

    choice: Choice
    plan: Plan
    rows: Sequence[TraceRow] = ()

    def html(self) -> str:
        """The whole file as text; it asks the network for nothing."""
        template = _templates().get_template("page.html.j2")
        choice, race = self.choice, self.choice.measurements.race
        measurements, raced = choice.measurements, choice.raced
        text = template.render(
            measurements=measurements,
            plan=self.plan,
            choice=choice,
            laws=choice.laws,
            unit=cost_unit(choice),
            beyond=BEYOND,
            options=sorted(
                {*choice.options, choice.chosen, choice.baseline},
                key=lambda option: (option.batch_size, option.lr),
            ),
            race_rows=race_rows(choice, raced) if raced else [],
            against_today=raced is None or raced.standings[0].runs > 0,
            level=last_level(choice, race) if race else "",
            charts=_script_json(all_charts(choice)),
            data=_script_json(
                {"measurements": to_plain(measurements), "plan": to_plain(self.plan)}
            ),
            bundle=_bundle(),
            last=self.rows[-1] if self.rows else None,
        )
        assert len(text.encode()) < MOST_BYTES, "the page outgrew its limit"
        return text

    def save(self, path: str | Path) -> Path:
        """Write the page.

        Raises:
            RunFolderError: The folder cannot be written.
        """
        write_text(Path(path), self.html())
        return Path(path)


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the installed package."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


def _script_json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rightbatch.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        seconds=show_seconds,
        bytes=show_bytes,
        estimate=_without_unit,
        three=show_number,
        two=_two_digits,
        exp=math.exp,
    )
    return environment


def _two_digits(value: float) -> str:
    """As the verdict gives ratios."""
    return f"{value:.2g}" if math.isfinite(value) else "no bound"


def _without_unit(e: Estimate) -> str:
    return str(replace(e, unit=""))
