"""`sweep --branch`: its lines, its document, its exit status."""

import json
from pathlib import Path

import pytest

import rightbatch as rb
from rightbatch.cli.branch import run_branch
from rightbatch.cli.console import DECIDED, UNDECIDED

JOB = """
import torch, rightbatch as rb
x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
job = rb.Job(
    model=lambda: torch.nn.Linear(3, 1),
    loss=lambda model, batch: (model(batch[0]) - 1).square().mean(),
    data=(x,),
    optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
    batch_size=2,
    evaluate=lambda model: float((model(x[:4]) - 1).square().mean()),
)
"""


@pytest.fixture
def job(tmp_path: Path) -> str:
    (tmp_path / "job.py").write_text(JOB)
    name = f"{tmp_path / 'job.py'}:job"
    rb.train(rb.load_job(name), out=tmp_path / "run", examples=40)
    return name


def test_it_says_what_it_found_and_goes_on(
    job: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    status = run_branch(job, run, budget=30.0, out=None, as_json=False)
    said = capfd.readouterr().out
    assert status in (DECIDED, UNDECIDED)
    assert max(map(len, said.replace(str(tmp_path), "").splitlines())) <= 80
    assert "loss over that of B = 2" in said
    (record,) = run.glob("branches-step-*.json")
    trained = json.loads(record.read_text())["race"]["lanes"]
    assert run_branch(job, run, budget=1e-3, out=None, as_json=True) == status
    document = json.loads(capfd.readouterr().out)
    assert document["record"] == str(record)
    assert document["probe"]["trained"] == sum(
        lane["steps"][-1] * lane["batch_size"] for lane in trained
    )
    assert document["verdict"].startswith("The critical" if status == 0 else "Undec")


def test_an_out_that_is_a_file_is_refused(job: str, tmp_path: Path) -> None:
    with pytest.raises(rb.RunFolderError, match="cannot write into"):
        run_branch(
            job, tmp_path / "run", budget=1.0, out=tmp_path / "job.py", as_json=False
        )
