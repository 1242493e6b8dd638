"""The command ``advise``: a prior from published laws, when nothing was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rightbatch.cli.console import DECIDED, UNDECIDED, make_console, print_document
from rightbatch.cli.options import COUNT, JSON
from rightbatch.core.units import show_count, show_number

if TYPE_CHECKING:
    from rightbatch.cluster.advice import Advice

TASK = click.Choice(["pre-training", "fine-tuning"])
MEASURING = (
    "a prior, no measurement. rightbatch tune JOB --budget 60 measures noise and time "
    "and races batches, in a minute (more for a large job); a NoiseMonitor in a run "
    "that trains anyway takes 2 % of its time"
)


@click.command()
@click.option("--task", type=TASK, default="pre-training", show_default=True)
@click.option("--parameters", type=COUNT, help="Of the model: 300M, 7B.")
@click.option("--tokens", type=COUNT, help="Of the whole run: 6B, 1e12.")
@click.option("--examples", type=COUNT, help="Of the whole run, instead of tokens.")
@click.option("--sequence", type=COUNT, help="Tokens of an example: 2048.")
@click.option("--optimizer", default="adamw", show_default=True, help="Its class.")
@click.option("--model", default="transformer", help="Or convolution, diffusion, ….")
@JSON
def advise(as_json: bool, **job: Any) -> int:
    """Say a batch by published laws, before anything is run.

    Example: rightbatch advise --parameters 300M --tokens 6B --sequence 2048
    """
    click.echo(" a prior from published laws; nothing was measured", err=as_json)
    from rightbatch.cluster.advice import advise as advise_job
    from rightbatch.core.json_io import to_plain
    from rightbatch.report.terminal import print_plain

    advice = advise_job(**job)
    status = UNDECIDED if advice.low is None else DECIDED
    if as_json:
        print_document({"status": status, "advice": to_plain(advice)})
    else:
        print_plain(make_console(as_json), advice_text(advice, job["sequence"]))
    return status


def advice_text(advice: Advice, sequence: float | None) -> str:
    """The priors and what follows from them, in 80 columns."""
    from rightbatch.report.terminal import wrapped

    lines = []
    for prior in advice.priors:
        text, estimate = "silent", prior.estimate
        if estimate is not None:
            text = f"{show_count(estimate.value)} {estimate.unit}".strip()
            if estimate.low > 0:
                low, high = show_count(estimate.low), show_count(estimate.high)
                text += f" ({low} to {high})"
        lines.append(f" {prior.number:<15}{text}, {prior.standing}")
        lines.append(wrapped("", f"{prior.source}; seen at {prior.domain}"))
    text, scaling = "none", advice.scaling
    if advice.low is not None and advice.high is not None:
        text = f"{show_count(advice.low)} to {show_count(advice.high)} {advice.unit}"
        if sequence is not None and advice.unit == "tokens":
            ends = (show_number(end / sequence) for end in (advice.low, advice.high))
            text += f", {' to '.join(ends)} examples"
    lines += ["", wrapped("batch", text), wrapped("why", advice.rule)]
    if scaling is not None:
        text = f"over that range lr x {scaling.lr:.3g}, eps x {scaling.eps:.3g}, "
        text += f"decoupled weight decay x {scaling.weight_decay:.3g} "
        lines.append(wrapped("rate", text + f"({scaling.rule}: {scaling.source})"))
    if advice.beta2:
        text = "{:.3g} to {:.3g}: a half-life of 10 M tokens".format(*advice.beta2)
        text += " (Marek et al. 2025), never below 0.9 (measured)"
        lines.append(wrapped("beta2", text))
    return "\n".join([*lines, wrapped("next", MEASURING)])
