"""The command ``check``: what is wrong with a job, and how it is run."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rightbatch.cli.console import (
    DECIDED,
    FAILED,
    announce,
    folded,
    load_quietly,
    make_console,
    print_document,
)
from rightbatch.cli.options import DURATION, JSON, PATH
from rightbatch.core.errors import RightbatchError, SettingError
from rightbatch.core.json_io import write_text
from rightbatch.job.built_in import BUILT_IN
from rightbatch.job.loading import JobAddress, as_job, load_named, look_up

if TYPE_CHECKING:
    from rightbatch.core.findings import Finding, Findings
    from rightbatch.job.job import Job
    from rightbatch.lint.sarif import Place

RANKED = ("note", "warning", "error")  # of severities, the worst last
CODES = {"multiple": True, "metavar": "CODES"}
COUNT = click.IntRange(min=1)


@click.command()
@click.argument("job", required=False)
@click.option("--select", **CODES, help="Only these rules: RB3,RB501.")
@click.option("--ignore", **CODES, help="All rules but these.")
@click.option("--micro-batch", type=COUNT, help="Examples of one pass on one rank.")
@click.option("--accumulation", type=COUNT, help="Passes that make a step.")
@click.option("--ranks", type=COUNT, help="Processes that make a step together.")
@click.option("--schedule", help="A batch that changes, as for train.")
@click.option("--time-axis", type=int, help="Of outputs that may not look ahead.")
@click.option("--budget", "budget_s", type=DURATION, help="Seconds for passes.")
@click.option("--baseline", type=PATH, help="Known findings, which are not shown.")
@click.option("--write-baseline", type=PATH, help="Make all findings known.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "note"]),
    help="Least severity for status 1: error; of a loader, warning.",
)
@JSON
@click.option("--sarif", metavar="FILE", help="Write SARIF 2.1.0; - for the output.")
@click.option("--explain", metavar="CODE", help="What a rule says, why, and the fix.")
@click.option("--list-rules", is_flag=True, help="All rules by code.")
def check(
    job: str | None,
    select: Sequence[str],
    ignore: Sequence[str],
    baseline: Path | None,
    write_baseline: Path | None,
    fail_on: str | None,
    as_json: bool,
    sarif: str | None,
    explain: str | None,
    list_rules: bool,
    **run: Any,
) -> int:
    """Check JOB, and how it is run, for what is wrong with it.

    JOB may also be a DataLoader or a BatchStream (train.py:loader), then what it feeds
    is audited; or the run folder of a tuning, then what was measured is judged too.

    Exit status: 0, 1 something as grave as --fail-on (or no job), 2 usage.
    """
    if list_rules or explain:
        click.echo(folded(_rules_listed()) if list_rules else _explained(explain or ""))
        return DECIDED
    if job is None:
        raise click.UsageError("Missing argument 'JOB'.")
    if as_json and sarif == "-":
        raise SettingError(
            "--json and --sarif - both want the output", fix="--sarif FILE"
        )
    asked: dict[str, Any] = {n: v for n, v in run.items() if v is not None}
    chosen = {"select": select, "ignore": ignore}
    quiet = as_json or sarif == "-"
    folder = _run_folder(job)
    address = _address_of(folder) if folder else look_up(job)
    console = announce(address, quiet)
    from rightbatch.lint.baseline import Baseline
    from rightbatch.lint.linter import chosen_codes
    from rightbatch.lint.sarif import sarif_document
    from rightbatch.report.terminal import print_plain

    codes = chosen_codes(**chosen)  # before a line of the job's is run
    if folder:
        found = _found_in_run(folder, chosen, asked, quiet)
    else:
        found = _found(job, codes, chosen | asked, quiet)
    items, known = found.findings.items, 0
    if write_baseline is not None:
        Baseline.of(items).save(write_baseline)
    if baseline is not None:
        items = Baseline.load(baseline).new(items)
        known = len(found.findings.items) - len(items)
    if sarif is not None:
        document = sarif_document(items, job=address.text, place=found.place)
        if sarif == "-":
            print_document(document)
        else:
            write_text(Path(sarif), json.dumps(document, indent=1))
    least = RANKED.index(fail_on or ("error" if found.loader is None else "warning"))
    failed = any(RANKED.index(f.severity) >= least for f in items)
    if as_json:
        print_document(found.document(items) | {"known": known})
    elif sarif != "-":
        lines = [*found.head, found.findings.split, *(str(f) for f in items)]
        lines = [line for line in lines if line]
        lines.append(_counts(items, found.findings.rules, known))
        if write_baseline is not None:
            lines.append(f"known from now on, in {write_baseline}")
        if found.tunable and not failed:
            lines.append(f"next: rightbatch tune {shlex.quote(address.text)}")
        print_plain(console, folded("\n".join(lines)))
    # What has just been made known is no failure.
    return FAILED if failed and write_baseline is None else DECIDED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was found, and in what.

    Attributes:
        findings: All of them.
        place: Where SARIF shows them.
        head: Lines that come before them.
        loader: What an audit said, where a loader was looked at.
        tunable: Whether `tune` comes next.
    """

    findings: Findings
    place: Place
    head: tuple[str, ...] = ()
    loader: Any = None
    tunable: bool = False

    def document(self, items: tuple[Finding, ...]) -> dict[str, Any]:
        """As JSON has it, with these findings."""
        from rightbatch.core.json_io import to_plain

        if self.loader is not None:
            return to_plain(replace(self.loader, findings=items))
        return to_plain(replace(self.findings, items=items))


def _found(name: str, codes: list[str], options: dict[str, Any], quiet: bool) -> _Found:
    """Of a job, or of a loader."""
    from rightbatch.core.findings import Findings
    from rightbatch.data.audit.audit import audit, is_loader
    from rightbatch.data.audit.loader_findings import LOADER_RULES
    from rightbatch.integrations.loading import described
    from rightbatch.lint.sarif import defined_at

    loaded = described(load_quietly(load_named, name, quiet))
    place = defined_at(look_up(name))
    if not is_loader(loaded):
        findings = _checked(as_job(name, loaded), options, quiet)
        return _Found(findings=findings, place=place, tunable=True)
    if asked := options.keys() - {"select", "ignore"}:
        raise SettingError(
            "a loader is audited by its order alone",
            seen=", ".join(sorted(asked)),
            why="how a job is run says nothing of it",
            fix="leave these options out, or check the job",
        )
    audited = audit(loaded)
    items = tuple(f for f in audited.findings if f.code in codes)
    return _Found(
        findings=Findings(items=items, rules=len({*LOADER_RULES}.intersection(codes))),
        place=place,
        head=(str(replace(audited, findings=())) + "\n",),
        loader=audited,
    )


def _found_in_run(
    folder: Path, chosen: dict[str, Any], asked: dict[str, Any], quiet: bool
) -> _Found:
    """Of a run folder and the job that it names, where that can be loaded."""
    from rightbatch.integrations.loading import load_job
    from rightbatch.lint.linter import check as find_faults
    from rightbatch.lint.sarif import Place, defined_at
    from rightbatch.measure.measurements import Measurements
    from rightbatch.training.run_folder import MEASUREMENTS

    spec = Measurements.load(folder / MEASUREMENTS).job.spec
    try:
        job = load_quietly(load_job, spec, quiet)
    except RightbatchError as error:
        return _Found(
            findings=find_faults(run=folder, **chosen),
            place=Place(path=folder / MEASUREMENTS),
            head=(f"only what was measured is checked: {error.what}",),
        )
    findings = _checked(job, {**chosen, **asked, "run": folder}, quiet)
    return _Found(findings=findings, place=defined_at(look_up(spec)))


def _checked(job: Job, options: dict[str, Any], quiet: bool) -> Findings:
    """The linter, with a live line."""
    from rightbatch.lint.linter import check as find_faults
    from rightbatch.report.terminal import LiveLine

    line = LiveLine(make_console(quiet))
    try:
        return find_faults(job, watch=lambda rule: line.show(f" {rule}"), **options)
    finally:
        line.end()


def _run_folder(text: str) -> Path | None:
    """The run folder that is meant, by itself or by a file in it."""
    path = Path(text)
    if path.suffix == ".json" and path.is_file():
        path = path.parent
    return path if path.is_dir() and text not in BUILT_IN else None


def _address_of(folder: Path) -> JobAddress:
    text = str(folder)
    where, about = folder.name or text, "a run folder"
    return JobAddress(text=text, kind="run", where=where, name="", about=about)


def _counts(items: Sequence[Finding], rules: int, known: int) -> str:
    """The last line: how many findings of each severity, of how many rules."""
    parts = []
    for severity in reversed(RANKED):
        if count := sum(f.severity == severity for f in items):
            parts.append(f"{count} {severity}{'s' if count > 1 else ''}")
    text = ", ".join(parts) or ("nothing new" if known else "nothing to mend")
    text += f"; {rules} rule{'' if rules == 1 else 's'}"
    if known:
        text += f"; {known} known finding{'s' if known > 1 else ''} not shown"
    return text


def _explained(code: str) -> str:
    """A rule's page, its paragraphs in 80 columns; lists and code as they are."""
    from rightbatch.lint.rules import page

    parts = page(code.upper()).rstrip().split("\n\n")
    plain = [part.replace("\n", " ") for part in parts]
    kept = [bool(re.search(r"^(?:[ *|>-]|\d+\.)", part, re.M)) for part in parts]
    return "\n\n".join(
        part if keep else textwrap.fill(text, 80, break_on_hyphens=False)
        for part, text, keep in zip(parts, plain, kept, strict=True)
    )


def _rules_listed() -> str:
    """Every rule with its name and what is true where it is silent, by family."""
    from rightbatch.lint.rules import ALL_RULES, FAMILIES, meaning, rule_name

    lines = []
    for family, title in FAMILIES.items():
        codes = [code for code in ALL_RULES if code.startswith(family)]
        lines += [f"{title} ({family}xx)"] if codes else []
        lines += [f"  {code}  {rule_name(code)}: {meaning(code)}" for code in codes]
    return "\n".join(lines)
