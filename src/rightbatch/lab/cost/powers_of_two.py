"""Whether a batch that is a power of two is faster than its neighbours."""

from __future__ import annotations

import math

from torch import nn

from rightbatch.core.estimate import Estimate
from rightbatch.fit.stairs import stair
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.cpu_time import cpu_seconds, ratio, step_of, timed
from rightbatch.lab.cost.step_time_law import made_job
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.training_runs import started

POWERS = (32, 64, 128, 256)  # the usual values
WORTH = 0.1  # a gain below a tenth is no reason to choose a batch [assumed]


def wide_layers() -> nn.Module:
    """Large enough that products of matrices, not overhead, are the step."""
    return nn.Sequential(
        nn.Linear(256, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def tiled_gain(tile: int) -> float:
    """What `gain` is on a device that works in tiles of so many examples.

    Example:
        >>> round(tiled_gain(32), 2)
        0.19
    """
    seconds = {
        str(b + d): [float(math.ceil((b + d) / tile))]
        for b in POWERS
        for d in (-1, 0, 1)
    }
    return gains(seconds)[0]


def gains(seconds: dict[str, list[float]]) -> list[float]:
    """By how much neighbours on both sides are slower, over all powers, each round."""
    rounds = range(len(seconds[str(POWERS[0])]))
    return [
        sum(
            math.log((seconds[str(b - 1)][i] + seconds[str(b + 1)][i]) / 2)
            - math.log(seconds[str(b)][i])
            for b in POWERS
        )
        / len(POWERS)
        for i in rounds
    ]


def run(trial: Trial) -> Seen:
    """CPU time of steps at powers of two, and one example more and less."""
    with started(made_job(wide_layers, (256,), trial.seed)) as state:
        sizes = [b + d for b in POWERS for d in (-1, 0, 1)]
        trial.tell("timing")
        steps = {str(b): step_of(state, b) for b in sizes}
        seconds = cpu_seconds(steps, trial.size(11, 40))
    gain = Estimate.median(gains(seconds), "")
    edge = stair([timed(b, seconds[str(b)]) for b in sizes])
    assert edge is not None  # there are rounds enough
    checks = (
        at_least(
            "how much slower b - 1 and b + 1 are than a power of two, on average",
            WORTH,
            gain,
            wrong={"no tiles": 0.0},
        ),
        at_most(
            "the same",
            WORTH,
            gain,
            wrong={"tiles of 32 examples": tiled_gain(32)},
            part="correction",
        ),
        equals(
            f"a step of {edge[0] + 1} over one of {edge[0]}, less one example's share",
            1.0,
            edge[1],
            margin=0.15,
            wrong={"another tile of 256": 2.0, "of 64": 1.25},
            part="correction",
        ),
    )
    whole = seconds[str(POWERS[-1])]
    chart = plot(
        [
            Series(
                name,
                [b + d for b in POWERS],
                [ratio(seconds[str(b + d)], whole) for b in POWERS],
                "points",
            )
            for name, d in (("2^k - 1", -1), ("2^k", 0), ("2^k + 1", 1))
        ],
        "batch size b",
        "CPU time of a step over that at 256",
        log="xy",
    )
    return Seen(
        checks,
        (
            Chart(
                "Each group of three lies together: nothing happens at a power of two.",
                "每组三个点几乎重合：在二的幂处并没有什么特别。",
                chart,
            ),
        ),
    )


CLAIM = Claim(
    id="powers-of-two",
    texts=("3 实践中的权衡: 32, 64, 128, 256 often match the hardware's architecture",),
    theory="in tiles of m: t(b) ~ ceil(b / m), so b + 1 costs up to m / b more",
    verdict="fails as written",
    seconds=3,
    power="11 rounds tell a gain of 10 %; 40 with --full about 5 %",
    en=Words(
        title="Powers of two suit the hardware",
        claimed="Usual batches are 32, 64, 128 or 256, values that match the way "
        "hardware is built.",
        assumed="Then a step of one example less or more should take longer than its "
        "share. Devices that work in tiles or waves do so; here it is asked of this "
        "CPU.",
        seen="Steps of a network of wide layers are timed at every power of two and "
        "one example to each side, in turns. No gain of a tenth is seen at any of "
        "them.",
        answer="on a CPU no power of two is faster than its neighbours by a tenth; "
        "whether a device has stairs must be measured there",
    ),
    zh=Words(
        title="二的幂适合硬件",
        claimed="常用的批量是 32、64、128、256，这些值与硬件架构的特性相匹配。",
        assumed="若是如此，多一个或少一个样本的一步应明显更慢。按块或按波工作的设备确实"
        "如此；这里问的是本机的 CPU。",
        seen="对由宽层组成的网络，轮流计时每个二的幂及其左右各差一个样本的批量：没有一"
        "处快出十分之一。",
        answer="在 CPU 上，二的幂并不比相邻的批量快十分之一；设备是否有台阶，要在该设备"
        "上测量",
    ),
    run=run,
)
