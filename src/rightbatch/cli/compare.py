"""``train --compare``: does a larger batch generalise worse on this job, and why."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import click

from rightbatch.cli.console import (
    DECIDED,
    INTERRUPTED,
    begin,
    load_quietly,
    print_document,
)
from rightbatch.core.errors import SettingError

PROBES = 20  # random vectors for the trace of each run [assumed]
BUDGETS = ("epochs", "updates", "loss")
# Options of train that mean the same here.
SHARED = ("job", "keep_threads", "out", "as_json")
LENGTH = ("epochs", "examples", "micro_batch")


def comparing(train: Callable[..., int]) -> Callable[..., int]:
    """The options of ``train`` that make it a comparison."""

    @functools.wraps(train)
    def either(
        *,
        compare: str | None,
        seeds: int | None,
        at: str | None,
        level: float | None,
        **given: Any,
    ) -> int:
        if compare is not None:
            return _compare(compare, seeds or 3, at or ",".join(BUDGETS), level, given)
        if (seeds, at, level) != (None, None, None):
            raise SettingError(
                "--seeds, --at and --level belong to --compare",
                fix="--compare 16,64,256",
            )
        return train(**given)

    options = [
        click.option(
            "--compare", help="Batches, 16,64,256: which generalises worse, why."
        ),
        click.option("--seeds", type=click.IntRange(1), help="Of --compare; 3."),
        click.option("--at", help="Of --compare: epochs,updates,loss."),
        click.option(
            "--level", type=float, help="Of --compare: training loss to match."
        ),
    ]
    for option in reversed(options):
        either = option(either)
    return either


def _compare(
    compare: str, seeds: int, at: str, level: float | None, given: dict[str, Any]
) -> int:
    """Compare, keep page and numbers, say what they show."""
    known = (*SHARED, *LENGTH, "rule")
    others = [n for n, v in given.items() if n not in known and v not in (None, False)]
    if others or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        flag = (
            f"--{others[0].removesuffix('_path').replace('_', '-')}" if others else ""
        )
        raise SettingError(
            "--compare trains many runs by itself, on one process",
            seen=flag or f"{os.environ['WORLD_SIZE']} processes",
            fix="with --epochs, --examples, --rule, --micro-batch, or none of these",
        )
    if not all(size.strip().isdecimal() for size in compare.split(",")):
        raise SettingError(
            f"{compare!r} is no list of batches", fix="--compare 16,64,256"
        )
    out, as_json = given["out"], given["as_json"]
    with begin(given["job"], out, as_json) as (console, _, folder):
        import torch

        from rightbatch.core.json_io import to_plain, write_json, write_text
        from rightbatch.integrations.loading import load_job
        from rightbatch.landscape.compare import compare_batches
        from rightbatch.landscape.comparison_page import comparison_page
        from rightbatch.landscape.comparison_text import sentences, table
        from rightbatch.landscape.point_sharpness import sharpness
        from rightbatch.measure.threads import pick_threads
        from rightbatch.report.answer import files_lines
        from rightbatch.report.terminal import TerminalProgress, print_plain, wrapped
        from rightbatch.training.run_folder import COMPARISON
        from rightbatch.training.run_state import RunState

        loaded = load_quietly(load_job, given["job"], as_json)
        if not given["keep_threads"]:
            trial = RunState.start(loaded, alone=True)
            torch.set_num_threads(pick_threads(trial)[0])
            trial.close()
        budgets: Any = [name.strip() for name in at.split(",")]
        comparison = compare_batches(
            loaded,
            [int(size) for size in compare.split(",")],
            seeds=seeds,
            budgets=budgets,
            level=level,
            rules=None if given["rule"] is None else ("none", given["rule"]),
            sharpness=functools.partial(
                sharpness, most_probes=PROBES, micro_batch=given["micro_batch"]
            ),
            progress=TerminalProgress(console, phases=1 + len(budgets)),
            **{name: given[name] for name in LENGTH},
        )
        if not comparison.runs:  # Ctrl-C came before the first had ended
            raise KeyboardInterrupt
        numbers, page = folder / COMPARISON, folder / "comparison.html"
        write_json(numbers, comparison, "rightbatch/comparison/1")
        write_text(page, comparison_page(comparison))
        said = " ".join(sentences(comparison))
        if as_json:
            plain = {"folder": str(folder), "answer": said}
            print_document(plain | {"comparison": to_plain(comparison)})
        else:
            files = [("page", f"{page}   opens offline"), ("data", str(numbers))]
            lines = [*table(comparison), "", wrapped("answer", said), ""]
            if comparison.interrupted:
                lines.append(" Interrupted: only what had been trained by then.\n")
            print_plain(console, "\n".join([*lines, files_lines(files)]))
    return INTERRUPTED if comparison.interrupted else DECIDED
