"""The page of training runs: every chart drawn from the trace, several side by side."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import vl_convert

import rightbatch as rb
from cases import regression_job, rightbatch
from rightbatch.report.run_page import recorded_run, run_charts, run_page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose batch grows."""
    path = tmp_path_factory.mktemp("runs") / "<grown>"
    ramp = rb.schedules.Stages(((0, 8), (400, 32)))
    rb.train(regression_job(), schedule=ramp, examples=1_000, out=path)
    return path


def held(text: str, name: str) -> Any:
    element = re.search(rf'id="{name}">(.*?)</script>', text, re.DOTALL)
    assert element is not None
    return json.loads(element[1], parse_constant=pytest.fail)


def test_every_change_stands_on_the_page(folder: Path) -> None:
    run = recorded_run(folder)
    text = run_page([run])
    assert "<grown>" not in text
    assert run.batches == "8 to 32"
    assert any("batch 8 -&gt; 32" in line for line in text.splitlines())
    charts = held(text, "charts")
    assert {"batch", "lr", "loss"} <= set(charts)
    for name, spec in charts.items():
        assert f'id="{name}"' in text
        assert vl_convert.vegalite_to_svg(spec).startswith("<svg")


def test_a_chart_holds_what_the_trace_says(folder: Path) -> None:
    run = recorded_run(folder)
    (values,) = [run_charts([run])["batch"]["data"]["values"]]
    assert [v["value"] for v in values] == [row.batch_size for row in run.rows]
    assert [v["examples"] for v in values] == [row.examples for row in run.rows]


def test_several_runs_are_compared(folder: Path, tmp_path: Path) -> None:
    rb.train(regression_job(), examples=500, out=tmp_path / "other")
    done = rightbatch("report", str(folder), "other", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (folder / "compared.html").read_text()
    assert "2 runs compared" in text
    assert {v["run"] for v in held(text, "charts")["loss"]["data"]["values"]} == {
        "<grown>",
        "other",
    }


@pytest.mark.parametrize("held_there", ["nothing", "an empty trace", "another command"])
def test_a_folder_without_a_run_is_told(tmp_path: Path, held_there: str) -> None:
    if held_there == "an empty trace":
        (tmp_path / "trace.jsonl").write_text("")
    if held_there == "another command":
        (tmp_path / "lab.json").write_text("{}")
    with pytest.raises(rb.RunFolderError, match=r"no training run|not been evaluated"):
        recorded_run(tmp_path)
