"""The frame of every page: one offline HTML file, its colours, and its charts."""

from __future__ import annotations

import functools
import json
from typing import Any

import jinja2
import vl_convert

from rightbatch.report.vega import Spec


def framed(title: str, body: str, charts: dict[str, Spec]) -> str:
    """A whole page around a body of HTML; it asks the network for nothing.

    Args:
        title: What the window shows, as plain text.
        body: HTML, already escaped. A chart is drawn into the element whose id is its
            key: `<figure><div class="chart" id="KEY"></div></figure>`.
        charts: Specifications from `report.vega.finished`.
    """
    return (
        templates()
        .get_template("base.html.j2")
        .render(title=title, body=body, charts=script_json(charts), bundle=bundle())
    )


@functools.cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the installed package."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def templates() -> jinja2.Environment:
    """The templates of pages; what they print is escaped, unknown names are errors."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("rightbatch.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
