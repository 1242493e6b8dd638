"""The command `report`, and the page it writes."""

import json
import re
from pathlib import Path

import pytest
from markupsafe import escape

import rightbatch as rb
from cases import rightbatch
from rightbatch.report.page import MOST_BYTES


def test_train_follows_the_plan_and_report_tells_of_it(tuned: tuple[Path, str]) -> None:
    folder, _ = tuned
    cwd = folder.parent
    plan = ("--plan", "run", "--epochs", "40")  # an undecided one may never get there
    done = rightbatch("train", "digits", *plan, "--out", "trained", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "Target 0.12" in done.stdout
    names = {p.name for p in (cwd / "trained").iterdir()}
    origin = {"measurements.json", "plan.json"}
    own = {".lock", "run.json", "job.json", "trace.jsonl", "checkpoints", "weights.pt"}
    assert names == own | origin
    told = rightbatch("report", "trained", cwd=cwd)
    assert told.returncode == 0, told.stderr
    text = (cwd / "trained" / "report.html").read_text()
    assert f"By a plan: {escape(rb.Plan.load(folder / 'plan.json').verdict)}" in text
    page = folder / "report.html"
    before = page.read_text()
    page.unlink()
    again = rightbatch("report", "run", cwd=cwd)
    assert again.returncode == 0, again.stderr
    assert page.read_text() == before


def test_the_page_is_one_offline_file(tuned: tuple[Path, str]) -> None:
    text = (tuned[0] / "report.html").read_text()
    assert len(text.encode()) < MOST_BYTES
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    for part in ("Every batch considered", "Every setting trained", "Every run"):
        assert part in markup
    assert not re.findall(r"src=|href=|@import|url\(", markup)
    assert not re.findall(r"<script[^>]+src=", text)
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    held = json.loads(data.group(1), parse_constant=pytest.fail)
    assert held["plan"]["batch_size"] == rb.Plan.load(tuned[0] / "plan.json").batch_size
