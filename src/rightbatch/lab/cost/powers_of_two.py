"""Whether a batch that is a power of two is faster than its neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import at_least, at_most
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.cpu_time import cpu_seconds, ratio
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.training_runs import digits_job, started

POWERS = (32, 64, 128, 256)  # the usual values
SIZES = [b + d for b in POWERS for d in (-1, 0, 1)]
WORTH = 0.1  # a gain below a tenth is no reason to choose a batch [assumed]


def wide_layers() -> nn.Module:
    """Large enough that products of matrices, not overhead, are most of a step."""
    layers = [nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10))


def gain_of(seconds: Sequence[float]) -> float:
    """How much slower the neighbours of a power of two are, in logs, on average.

    Args:
        seconds: Of a step at each of `SIZES`.

    Example:
        >>> round(gain_of([math.ceil(b / 32) for b in SIZES]), 2)  # in tiles of 32
        0.2
    """
    groups = [seconds[i : i + 3] for i in range(0, len(SIZES), 3)]
    logs = [math.log((below + above) / 2 / at) for below, at, above in groups]
    return sum(logs) / len(logs)


def run(trial: Trial) -> Seen:
    """CPU time of steps at powers of two, and one example more and less."""
    trial.tell("timing")
    with started(digits_job(model=wide_layers, seed=trial.seed)) as state:
        steps = [(state, b, b) for b in SIZES]
        seconds = cpu_seconds(steps, trial.size(11, 40))
    gain = Estimate.median([gain_of(r) for r in zip(*seconds, strict=True)], "")
    tiles = gain_of([math.ceil(b / 32) for b in SIZES])
    checks = (
        at_least("gain of a power of two", WORTH, gain, wrong={"no tiles": 0.0}),
        at_most(
            "the same", WORTH, gain, wrong={"tiles of 32": tiles}, part="correction"
        ),
    )
    at = seconds[1::3]
    series = [
        Series(
            name,
            POWERS,
            [ratio(s, p) for s, p in zip(sides, at, strict=True)],
            "points",
        )
        for name, sides in (("2^k - 1", seconds[::3]), ("2^k + 1", seconds[2::3]))
    ]
    in_tiles = [math.ceil((b + 1) / 32) * 32 / b for b in POWERS]
    series.append(Series("2^k + 1 in tiles of 32", POWERS, in_tiles, "dashed"))
    chart = plot(
        series, "power of two", "CPU time of a step, over that at 2^k", log="x"
    )
    caption = (
        "One example more or less beside each power of two: near 1 it is no matter."
    )
    zh = "每个二的幂旁多一个或少一个样本：接近 1 就没有差别。"
    return Seen(checks, (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="powers-of-two",
    texts=("3 实践中的权衡: 32, 64, 128, 256 often match the hardware's architecture",),
    theory="in tiles of m, t(b) ~ ceil(b / m): b + 1 costs up to m / b more",
    verdict="fails as written",
    seconds=3,
    power="11 rounds tell a gain of 10 %; 40 with --full about 5 %",
    en=Words(
        title="Powers of two suit the hardware",
        claimed="Usual batches are 32, 64, 128 or 256, values that match the way "
        "hardware is built.",
        assumed="Then one example more or less should cost more than its share, as on "
        "devices that work in tiles or waves; here this CPU is asked.",
        seen="A network of wide layers is timed at powers of two and one example to "
        "each side, in turns. No gain worth choosing a batch for is seen.",
        answer="on this CPU powers of two are not faster than their neighbours by a "
        "tenth, on average; another device must be measured",
    ),
    zh=Words(
        title="二的幂适合硬件",
        claimed="常用的批量是 32、64、128、256，与硬件架构的特性相匹配。",
        assumed="若是如此，差一个样本应格外费时，按块工作的设备正是这样；这里问 CPU。",
        seen="轮流计时宽层网络在二的幂及其左右的一步：看不到值得据此选批量的差别。",
        answer="在这个 CPU 上，二的幂平均并不比相邻批量快十分之一；其他设备须另行测量",
    ),
    run=run,
)
