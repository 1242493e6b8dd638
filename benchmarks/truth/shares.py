"""What a short race misses: regret against the share of a run that is raced.

Every setting of a stored grid trains from initial weights, by the plain loop, for
shares of the time of the grid's best run. Whichever is best then, by the held-out
metric of its last weights or of weights averaged over the last half, is looked up in
the grid: its time to the target over the grid's best. No law helps.

    python benchmarks/truth/shares.py --jobs digits
    python benchmarks/truth/shares.py --chart docs/regret-by-share.svg
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from grid import Trainer, Truth, constant
from jobs import JOBS

sys.path.insert(0, str(Path(__file__).parents[1]))
from results import FOLDER, write_json

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
SEEDS = (0, 1)
WEIGHTS = ("last", "averaged")


def metrics_along(trainer: Trainer, steps: int) -> dict[str, list[float]]:
    """The metric after every share of so many steps, by last and averaged weights.

    Infinitely bad from where the loss is not finite, or no step has been made.
    """
    sign = 1.0 if trainer.job.goal == "min" else -1.0
    found: dict[str, list[float]] = {name: [] for name in WEIGHTS}
    parameters = list(trainer.model.parameters())
    ends = [int(share * steps) for share in SHARES]
    sums: dict[int, list[torch.Tensor]] = {}
    for step in range(1, max(ends) + 1):
        loss = trainer.step()
        for end in ends:
            if end / 2 < step <= end:
                held = [p.detach().clone() for p in parameters]
                if end in sums:
                    for total, own in zip(sums[end], held, strict=True):
                        total.add_(own)
                else:
                    sums[end] = held
        for end in (e for e in ends if e == step):
            bad = not math.isfinite(float(loss))
            last = math.inf if bad else sign * trainer.evaluated()
            kept = [p.detach().clone() for p in parameters]
            count = end - end // 2
            with torch.no_grad():
                for p, total in zip(parameters, sums[end], strict=True):
                    p.copy_(total / count)
                mean = math.inf if bad else sign * trainer.evaluated()
                for p, own in zip(parameters, kept, strict=True):
                    p.copy_(own)
            found["last"].append(last if math.isfinite(last) else math.inf)
            found["averaged"].append(mean if math.isfinite(mean) else math.inf)
    for name in WEIGHTS:  # shares of no step
        missing = len(SHARES) - len(found[name])
        found[name] = [math.inf] * missing + found[name]
    return found


def regrets(name: str) -> dict[str, Any]:
    """By weights and share: time of what was picked over the best, for every seed."""
    case, truth = JOBS[name], Truth.load(name)
    job, best_s = case.make(), truth.seconds(truth.best)
    picked: dict[str, list[list[float]]] = {w: [[] for _ in SHARES] for w in WEIGHTS}
    for seed in SEEDS:
        scores = {}
        for batch, rate in truth.cells:
            steps = int(best_s / truth.step_s[batch])
            trainer = Trainer(job, batch, seed, constant(rate), truth.piece)
            scores[batch, rate] = metrics_along(trainer, steps) if steps else None
        for weights in WEIGHTS:
            for place in range(len(SHARES)):
                known = {c: s[weights][place] for c, s in scores.items() if s}
                cell = min(known, key=known.__getitem__)
                picked[weights][place].append(truth.seconds(cell) / best_s)
    optimizer = type(job.optimizer(job.make_model().parameters())).__name__
    return {"optimizer": optimizer, "shares": SHARES, **picked}


def line(name: str, found: dict[str, Any]) -> str:
    """One job, the mean over seeds by share; never where a seed's never reached."""
    words = [f"{name:<12}{found['optimizer']:<6}"]
    for weights in WEIGHTS:
        values = [statistics.mean(map(float, v)) for v in found[weights]]
        shown = [f"{v:6.2f}" if math.isfinite(v) else " never" for v in values]
        words.append(f"{weights}:" + "".join(shown))
    return " ".join(words)


def chart(found: dict[str, Any], path: Path) -> None:
    """Regret by share, one line a job, last and averaged weights side by side."""
    import altair as alt
    import vl_convert

    most = 3.0
    rows = [
        {
            "share": share,
            "regret": min(statistics.mean(map(float, values)), most),
            "job": name,
            "optimizer": job["optimizer"],
            "weights": f"{weights} weights",
        }
        for name, job in found.items()
        for weights in WEIGHTS
        for share, values in zip(job["shares"], job[weights], strict=True)
    ]
    lines = (
        alt.Chart(alt.Data(values=rows), width=300, height=240)
        .mark_line(point=True)
        .encode(
            x=alt.X(
                "share:Q",
                title="share of a run raced",
                scale=alt.Scale(type="log", domain=[0.045, 1.1]),
                axis=alt.Axis(values=list(SHARES), format="~g"),
            ),
            y=alt.Y(
                "regret:Q",
                title=f"time of what is picked, best = 1 ({most:g}: given up)",
                scale=alt.Scale(type="log", domain=[0.95, 1.02 * most]),
                axis=alt.Axis(values=[1, 1.2, 1.5, 2, most], format="~g"),
            ),
            color=alt.Color("optimizer:N", title=None),
            detail="job:N",
            column=alt.Column("weights:N", title=None, sort="descending"),
        )
    )
    path.write_text(vl_convert.vegalite_to_svg(lines.to_json()), encoding="utf-8")


def main() -> None:
    """Parse and run; what was found before of other jobs is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--chart", type=Path)
    given = parser.parse_args()
    path = FOLDER / "truth-shares.json"
    found: dict[str, Any] = {}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))["results"]
    if given.chart:
        chart(found, given.chart)
        return
    torch.set_num_threads(1)
    for name in given.jobs:
        found[name] = regrets(name)
        print(line(name, found[name]), flush=True)
        write_json("truth-shares", found)


if __name__ == "__main__":
    main()
