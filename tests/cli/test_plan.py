"""The command `plan`."""

import json
from pathlib import Path

import rightbatch as rb
from cases import rightbatch


def test_plan_decides_again_without_measuring(tuned: tuple[Path, str]) -> None:
    folder, _ = tuned
    done = rightbatch(
        "plan", "run", "--objective", "examples", "--json", cwd=folder.parent
    )
    assert done.returncode in (0, 3), done.stderr
    document, before = json.loads(done.stdout), rb.Plan.load(folder / "plan.json")
    assert document["status"] == done.returncode
    plan = document["plan"]
    assert plan["objective"] == "examples"
    assert plan["grade"] == before.grade
    assert plan["batch_size"] <= before.batch_size
    late = rightbatch("plan", "run", "--deadline", "0.001", cwd=folder.parent)
    assert late.returncode == 3
    # On a machine too busy to come to the target while measuring nothing is known.
    known = "seconds_to_target" in rb.Plan.load(folder / "plan.json").predicted
    told = "no batch size meets the deadline" if known else "cannot be judged"
    assert told in late.stderr
    tight = rightbatch("plan", "run", "--memory", "10KiB", cwd=folder.parent)
    assert tight.returncode == 2
    assert "not even one example" in tight.stderr
