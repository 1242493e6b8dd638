"""Who finds that examples touch each other: ours and the peers', on one zoo of models.

Every model of ``tests/coupling/zoo.py`` under three seeds, each tool by its own call.
torchtest2 has a check for it, in eval mode. torch-audit and guardtower have none: any
warning of theirs that names the batch counts. Cases of time, documents and losses are
beyond what any peer asks. The peers run in an environment of their own:

    python -m venv .venv-leaks
    .venv-leaks/bin/pip install -c constraints.txt \
        torchtest2==0.1.0 torch-audit==0.3.0 guardtower==0.1.0 numpy
    export PYTHONPATH=tests:src
    python benchmarks/leaks.py --peers .venv-leaks/bin/python      # two minutes
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from coupling.zoo import CLEAN, LEAKING, Case

SEEDS = 3
ONLY_CHECK = "batch_independence"


class AsCalled(nn.Module):
    """The model of a case with the inputs of a batch as positional arguments."""

    def __init__(self, case: Case, model: nn.Module, batch: Any) -> None:
        super().__init__()
        self.model, self.case = model, case
        self.names = list(batch) if isinstance(batch, dict) else None

    def forward(self, *inputs: Any) -> Any:
        """As `leaks` calls it; the first tensor where there is a loss."""
        options = self.case.options
        batch = dict(zip(self.names, inputs, strict=True)) if self.names else inputs[0]
        if "call" in options:
            return options["call"](self.model, batch)
        if "loss" in options and self.names:
            return self.model(inputs[0])
        return self.model(**batch) if self.names else self.model(batch)


def positional(batch: Any) -> tuple[Any, ...]:
    """The inputs of `AsCalled`."""
    if isinstance(batch, dict):
        return tuple(batch.values())
    return batch[:1] if isinstance(batch, tuple) else (batch,)


def by_torchtest2(case: Case, model: nn.Module, batch: Any) -> bool:
    """Its check of batch independence."""
    import torchtest2

    report = torchtest2.check_model(
        AsCalled(case, model, batch),
        positional(batch),
        skip=[n for n in torchtest2.CHECKS if n not in {"forward", ONLY_CHECK}],
        overfit_steps=0,
    )
    return report[ONLY_CHECK].status.value in {"FAIL", "WARN"}


def by_torch_audit(case: Case, model: nn.Module, batch: Any) -> bool:
    """Any finding above a note that names the batch."""
    import torch_audit

    result = torch_audit.audit(model, phase="static", batch=batch, reporters=[])
    warnings = [f for f in result.findings if f.severity > torch_audit.Severity.INFO]
    return any("batch" in f.message.lower() for f in warnings)


def by_guardtower(case: Case, model: nn.Module, batch: Any) -> bool:
    """Any finding above a note that names the batch, in one training step."""
    import guardtower

    called = AsCalled(case, model, batch)

    def step() -> torch.Tensor:
        if "loss" in case.options:
            result = case.options["loss"](model, batch)
            return result[0] if isinstance(result, tuple) else result.mean()
        out = called(*positional(batch))
        return (out[0] if isinstance(out, tuple) else out).square().mean()

    report = guardtower.audit(model, step)
    warnings = [f for f in report.findings if f.severity > guardtower.Severity.INFO]
    return any("batch" in f.message.lower() for f in warnings)


def by_ours(case: Case, model: nn.Module, batch: Any) -> bool:
    """All that the case asks for, at the right place; found elsewhere is not found."""
    import rightbatch as rb

    leaks = rb.coupling.leaks(model, batch, **case.options)
    found = {(leak.across, leak.module): leak.modes for leak in leaks}
    return found == case.leaks if case.leaks else bool(leaks)


Tool = Callable[[Case, nn.Module, Any], bool]
OURS: dict[str, Tool] = {"rightbatch": by_ours}
PEERS: dict[str, Tool] = {
    "torchtest2": by_torchtest2,
    "torch-audit": by_torch_audit,
    "guardtower": by_guardtower,
}


def answers(tools: dict[str, Tool]) -> Iterator[dict[str, Any]]:
    """One row for every tool, case and seed."""
    for name, tool in tools.items():
        for case in LEAKING + CLEAN:
            for seed in range(SEEDS):
                torch.manual_seed(seed)
                model, batch = case.make(), case.batch()
                started, error = time.process_time(), ""
                try:
                    alarm: bool | None = tool(case, model, batch)
                except Exception as raised:
                    alarm, error = None, f"{type(raised).__name__}: {raised}"[:120]
                yield {
                    "tool": name,
                    "case": case.name,
                    "seed": seed,
                    "leaks": bool(case.leaks),
                    "alarm": alarm,
                    "seconds": round(time.process_time() - started, 4),
                    "error": error,
                }


def by_case(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of one tool: whether a case leaks, and the alarm under every seed."""
    cases: dict[str, dict[str, Any]] = {}
    for row in rows:
        case = cases.setdefault(row["case"], {"leaks": row["leaks"], "alarms": []})
        case["alarms"].append(row["alarm"])
    return cases


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for every tool; a case counts as found where all seeds are."""
    lines = []
    for tool in dict.fromkeys(row["tool"] for row in rows):
        own = [row for row in rows if row["tool"] == tool]

        alarms = {
            leaks: [v for v in by_case(own).values() if v["leaks"] is leaks]
            for leaks in (True, False)
        }
        lines.append(
            {
                "tool": tool,
                "found": sum(all(v["alarms"]) for v in alarms[True]),
                "leaking": len(alarms[True]),
                "false_alarms": sum(any(v["alarms"]) for v in alarms[False]),
                "clean": len(alarms[False]),
                "failed": sum(
                    None in v["alarms"] for both in alarms.values() for v in both
                ),
                "median_s": statistics.median(row["seconds"] for row in own),
                "most_s": max(row["seconds"] for row in own),
            }
        )
    return lines


def table(rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The answer of every tool to every case: yes, no, failed, or mixed over seeds."""
    words = {True: "yes", False: "no", None: "failed"}
    answered: dict[str, dict[str, str]] = {}
    for tool in dict.fromkeys(row["tool"] for row in rows):
        for name, case in by_case([r for r in rows if r["tool"] == tool]).items():
            said = {words[alarm] for alarm in case["alarms"]}
            answered.setdefault(name, {})[tool] = (
                said.pop() if len(said) == 1 else "mixed"
            )
    return answered


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="the Python of the peers' environment")
    parser.add_argument("--only-peers", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only_peers:
        print("\n" + json.dumps(list(answers(PEERS))))
        return
    from results import write_json

    rows = list(answers(OURS))
    if options.peers:
        command = [options.peers, __file__, "--only-peers"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(done.stdout.splitlines()[-1])
    lines = summary(rows)
    print(f"{'':12} {'found':>8} {'false alarms':>13} {'failed':>7} {'CPU s':>7}")
    for x in lines:
        found = f"{x['found']}/{x['leaking']}"
        alarms = f"{x['false_alarms']}/{x['clean']}"
        print(
            f"{x['tool']:12} {found:>8} {alarms:>13} {x['failed']:7} "
            f"{x['median_s']:7.3f}"
        )
    write_json("leaks", {"seeds": SEEDS, "tools": lines, "cases": table(rows)})


if __name__ == "__main__":
    sys.exit(main())
