"""The command ``lab``: claims about batch size, run here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rightbatch.cli.console import (
    DECIDED,
    UNDECIDED,
    folded,
    keeping,
    make_console,
    print_document,
)
from rightbatch.cli.options import JSON, OUT
from rightbatch.core.errors import MissingExtraError, SettingError
from rightbatch.core.json_io import write_text
from rightbatch.core.machine import installed, summary

if TYPE_CHECKING:
    from rich.console import Console

    from rightbatch.lab.claim import Claim, Outcome

GALLERY = "lab.html"
MARKS = {"holds": "+", "holds if": "~", "fails as written": "-"}


@click.command()
@click.argument("ids", nargs=-1, metavar="[CLAIM]...")
@click.option("--all", "everything", is_flag=True, help="Run all, some minutes.")
@click.option("--full", is_flag=True, help="At full size: finer, and much longer.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Default 0.")
@click.option(
    "--language",
    type=click.Choice(["en", "zh"]),
    default="en",
    help="Of the gallery; the texts are Chinese.",
)
@OUT
@JSON
def lab(
    ids: Sequence[str],
    everything: bool,
    full: bool,
    seed: int,
    language: str,
    out: Path | None,
    as_json: bool,
) -> int:
    """Run claims about batch size: each has a number that it must give.

    Without arguments it lists them by the text they come from. What was run lies in
    one folder: lab.json, and lab.html with every chart.

    Exit status: 0 every verdict is the one on record, 3 another was found.
    """
    if everything and ids:
        raise SettingError("--all and claims by name", fix="one of the two")
    console = make_console(as_json)
    head = f"rightbatch {installed('rightbatch')} | lab | {summary()}"
    click.echo(head[:80], err=as_json)
    from rightbatch.lab.chapters import CLAIMS, claim_named

    if not everything and not ids:
        if as_json:
            print_document({"claims": [_listed(claim) for claim in CLAIMS.values()]})
        else:
            click.echo(folded(_listing()))
        return DECIDED
    chosen = (
        list(CLAIMS.values())
        if everything
        else [claim_named(i) for i in dict.fromkeys(ids)]
    )
    return _run(chosen, full, seed, language, out, as_json, console)


def _run(
    chosen: list[Claim],
    full: bool,
    seed: int,
    language: str,
    out: Path | None,
    as_json: bool,
    console: Console,
) -> int:
    """Run claims one after another; what is finished is kept whatever comes."""
    from rightbatch.lab.claim import run_claim
    from rightbatch.report.terminal import TerminalProgress, print_plain
    from rightbatch.training.run_folder import make_run_folder

    progress = TerminalProgress(console, phases=len(chosen))
    folder = make_run_folder(out, "lab")
    outcomes: list[Outcome] = []
    missing: list[str] = []
    with keeping(folder, as_json):
        try:
            for claim in chosen:
                try:
                    ran = run_claim(claim, seed=seed, full=full, progress=progress)
                except MissingExtraError as error:
                    if len(chosen) == 1:
                        raise
                    missing.append(f"{claim.id}: {error.fix}")
                    continue
                outcomes.append(ran)
        finally:
            if outcomes:
                _keep(outcomes, folder, language)
    if as_json:
        print_document(_ledger(outcomes))
    else:
        if len(outcomes) == 1:
            print_plain(console, "\n" + folded(str(outcomes[0])))
        _say_end(console, outcomes, missing, folder)
    return DECIDED if all(o.as_recorded for o in outcomes) else UNDECIDED


def _ledger(outcomes: list[Outcome]) -> dict[str, object]:
    """What was found, and on what."""
    return {
        "rightbatch": installed("rightbatch"),
        "torch": installed("torch"),
        "machine": summary(),
        "claims": [outcome.to_plain() for outcome in outcomes],
    }


def _keep(outcomes: list[Outcome], folder: Path, language: str) -> None:
    """Write ledger and gallery."""
    from rightbatch.lab.gallery import save_gallery
    from rightbatch.training.run_folder import LAB

    text = json.dumps(_ledger(outcomes), indent=1, ensure_ascii=False)
    write_text(folder / LAB, text + "\n")
    save_gallery(outcomes, folder / GALLERY, "zh" if language == "zh" else "en")


def _say_end(
    console: Console, outcomes: list[Outcome], missing: list[str], folder: Path
) -> None:
    """What was found, and where it lies."""
    from rightbatch.report.answer import files_lines
    from rightbatch.report.terminal import print_plain
    from rightbatch.training.run_folder import LAB

    other = [o for o in outcomes if not o.as_recorded]
    told = f"{len(outcomes) - len(other)} of {len(outcomes)} as on record"
    lines = [f"\n{told}"]
    lines += [f"  {o.claim.id}: {o.verdict}, not {o.claim.verdict}" for o in other]
    lines += [f"  not run: {one}" for one in missing]
    print_plain(console, folded("\n".join(lines)))
    files = [
        ("page", f"{folder / GALLERY}   opens offline"),
        ("data", str(folder / LAB)),
    ]
    print_plain(console, files_lines(files))


def _listing() -> str:
    """The claims by text."""
    from rightbatch.lab.chapters import CLAIMS, TEXTS, by_text

    width = max(len(name) for name in CLAIMS)
    columns = max(shutil.get_terminal_size().columns, 60)
    lines = []
    for number, claims in by_text().items():
        lines += ["", f"{number}  {TEXTS[number]}"]
        for claim in claims:
            line = f" {MARKS[claim.verdict]} {claim.id:<{width}}  {claim.en.title}"
            lines.append(line if len(line) <= columns else line[: columns - 1] + "…")
    seconds = sum(claim.seconds for claim in CLAIMS.values())
    lines += [
        "",
        "+ holds   ~ holds under a condition   - fails as written",
        f"{len(CLAIMS)} claims: rightbatch lab {next(iter(CLAIMS))} runs one, --all "
        f"all, {max(seconds / 60, 1):.0f} minutes.",
    ]
    return "\n".join(lines)


def _listed(claim: Claim) -> dict[str, object]:
    """One row of the list, for --json."""
    return {
        "id": claim.id,
        "title": claim.en.title,
        "verdict": claim.verdict,
        "texts": claim.texts,
        "seconds": claim.seconds,
    }
