"""The page: one offline HTML file that shows the answer and how it was found."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2

from rightbatch.core.estimate import Estimate
from rightbatch.core.json_io import to_plain, write_text
from rightbatch.core.units import show_number
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.choice import BEYOND, Choice
from rightbatch.plan.verdict import LEAST_TOLD, cost_unit
from rightbatch.report.charts import all_charts
from rightbatch.report.frame import bundle, script_json, templates
from rightbatch.report.race_rows import last_level, race_rows
from rightbatch.training.plan import Plan

MOST_BYTES = 2_000_000
MOST_DATA = 700_000  # of these for measurements and plan


@dataclass(frozen=True)
class Page:
    """A report, ready to be saved.

    Attributes:
        choice: What was decided, with all it was decided from.
        plan: The same, explained.
    """

    choice: Choice
    plan: Plan

    def html(self) -> str:
        """The whole file as text; it asks the network for nothing."""
        template = _templates().get_template("page.html.j2")
        choice, raced = self.choice, self.choice.raced
        measurements = choice.measurements
        data = _data(measurements, self.plan)
        ends_only = len(data) > MOST_DATA
        if ends_only:
            data = _data(_ends_only(measurements), self.plan)
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
            today=None if raced is None else raced.standings[0],
            at_most=max(choice.gain.high, LEAST_TOLD),
            level=show_number(last_level(choice)) if raced else "",
            charts=script_json(all_charts(choice)),
            data=data,
            ends_only=ends_only,
            bundle=bundle(),
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


def _data(measurements: Measurements, plan: Plan) -> str:
    return script_json({"measurements": to_plain(measurements), "plan": to_plain(plan)})


def _ends_only(measurements: Measurements) -> Measurements:
    """The same, with only the last evaluation of every run of the race."""
    race = measurements.race
    if race is None:
        return measurements
    lanes = tuple(
        replace(lane, steps=lane.steps[-1:], metrics=lane.metrics[-1:])
        for lane in race.lanes
    )
    return replace(measurements, race=replace(race, lanes=lanes))


def _templates() -> jinja2.Environment:
    environment = templates()
    environment.filters.update(estimate=_without_unit, two=_two_digits, factor=_factor)
    return environment


def _two_digits(value: float) -> str:
    """As the verdict gives ratios."""
    return f"{value:.2g}" if math.isfinite(value) else "no bound"


def _factor(spread: float) -> str:
    """Two standard deviations of a log, as the factor they are."""
    return _two_digits(math.exp(2 * spread))


def _without_unit(e: Estimate) -> str:
    return str(replace(e, unit=""))
