"""What BatchNorm and GroupNorm cost: memory, time, and energy on several devices."""

from __future__ import annotations

from torch import nn

from rightbatch.cluster.network import ASSUMED, Network
from rightbatch.core.torch_private import BatchNorm
from rightbatch.coupling.convert_norms import convert_norms
from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.accumulation import distance, gradient_of
from rightbatch.lab.cost.cpu_time import cpu_seconds, ratio, step_of
from rightbatch.lab.cost.step_time_law import made_job
from rightbatch.lab.plots import Series, bars, plot
from rightbatch.lab.training_runs import started
from rightbatch.memory.step import step_of as traced_step_of
from rightbatch.memory.traced_step import trace_step

MICRO, DEVICES = 8, 4  # BatchNorm is to see 32 examples, and a device holds 8
WATTS = 300.0  # of a device, at work or waiting [assumed]; it cancels in the ratios
FREE = Network(bandwidth=1e30, latency_s=0.0)


def with_batch_norm() -> nn.Module:
    """Three convolutions, each normalised over the batch."""
    layers: list[nn.Module] = []
    for channels, width, stride in ((3, 32, 1), (32, 32, 1), (32, 64, 2)):
        layers += [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *ends)


def with_group_norm() -> nn.Module:
    """The same, each normalised within an example."""
    model = with_batch_norm()
    convert_norms(model, "group")
    return model


def exchange_s(model: nn.Module, network: Network) -> float:
    """Seconds in which devices of a step only share BatchNorm's statistics.

    Two sums a channel forward and two backward, each layer waiting for its own.
    """
    widths = [m.num_features for m in model.modules() if isinstance(m, BatchNorm)]
    return sum(2 * network.all_reduce_s(2 * 4 * w, DEVICES) for w in widths)


def joules_an_example(step_s: float, waiting_s: float, devices: int) -> float:
    """Energy by watts and time: devices that share a batch make it together."""
    return devices * WATTS * (step_s + waiting_s) / (devices * MICRO)


def peak_bytes(job: Job, micro: int) -> int:
    """Most bytes alive in a traced step."""
    (trace,) = trace_step(traced_step_of(job), (micro,))
    return max(trace.bytes)


def run(trial: Trial) -> Seen:
    """Both networks at one micro-batch, then the model of several devices."""
    jobs = {
        name: made_job(model, (3, 16, 16), trial.seed)
        for name, model in (("batch", with_batch_norm), ("group", with_group_norm))
    }
    trial.tell("tracing memory")
    bytes_of = {name: peak_bytes(job, MICRO) for name, job in jobs.items()}
    together = peak_bytes(jobs["batch"], MICRO * DEVICES)
    apart = {
        name: distance(gradient_of(job, 32, MICRO), gradient_of(job, 32, 32))
        for name, job in jobs.items()
    }
    trial.tell("timing")
    with started(jobs["batch"]) as batch, started(jobs["group"]) as group:
        seconds = cpu_seconds(
            {
                "batch": step_of(batch, MICRO),
                "group": step_of(group, MICRO),
                "all": step_of(batch, MICRO * DEVICES),
            },
            trial.size(9, 30),
        )
        waiting, free = (exchange_s(batch.network, net) for net in (ASSUMED, FREE))
    slower = ratio(seconds["group"], seconds["batch"])
    one_step = min(seconds["batch"])

    def cost(step_s: float, waiting_s: float) -> float:
        """Energy of synchronised devices over that of one alone."""
        alone = joules_an_example(step_s, 0.0, 1)
        return joules_an_example(step_s, waiting_s, DEVICES) / alone

    checks = (
        at_most(
            "distance of GroupNorm's gradient in pieces of 8 from that of 32 at once",
            1e-4,
            apart["group"],
            wrong={"BatchNorm": apart["batch"]},
        ),
        equals(
            "peak memory at b = 8, GroupNorm over BatchNorm",
            1.0,
            bytes_of["group"] / bytes_of["batch"],
            within=0.05,
            wrong={"32 at once for BatchNorm": bytes_of["group"] / together},
        ),
        at_most(
            "CPU time of a step of 8, GroupNorm over BatchNorm",
            1.6,
            slower,
            wrong={"a step of 32": ratio(seconds["all"], seconds["batch"]).value},
        ),
        at_least(
            "modelled energy of an example, BatchNorm on 4 devices over 1, as here",
            1.005,
            cost(one_step, waiting),
            wrong={"a network that costs nothing": cost(one_step, free)},
        ),
        equals(
            "the same with a network that costs nothing",
            1.0,
            cost(one_step, free),
            within=1e-6,
            wrong={"every device's watts on top": float(DEVICES)},
            part="limit",
        ),
    )
    steps = [1e-4 * 1.5**i for i in range(23)]
    modelled = plot(
        [
            Series(
                "BatchNorm over 4 devices", steps, [cost(s, waiting) for s in steps]
            ),
            Series("GroupNorm on one", steps, [1.0] * len(steps), "dashed"),
            Series(
                "this machine's step", [one_step], [cost(one_step, waiting)], "points"
            ),
        ],
        "seconds of a step of 8",
        "modelled energy of an example, relative",
        log="xy",
    )
    measured = bars(
        {
            "memory, GroupNorm": bytes_of["group"] / bytes_of["batch"],
            "memory, BatchNorm of 32": together / bytes_of["batch"],
            "CPU time, GroupNorm": slower,
            "CPU time, BatchNorm of 32": ratio(seconds["all"], seconds["batch"]),
        },
        "over a step of 8 with BatchNorm",
    )
    return Seen(
        checks,
        (
            Chart(
                "Measured: at one micro-batch the two cost about the same.",
                "实测：微批量相同时，两者的代价相近。",
                measured,
            ),
            Chart(
                "Modelled (assumed link of 100 Gb/s and 20 us): devices that wait for "
                "each other use energy; devices that only share work do not.",
                "模型（假设链路 100 Gb/s、20 us）：互相等待的设备多耗能，只是分担工作的"
                "则不会。",
                modelled,
            ),
        ),
    )


CLAIM = Claim(
    id="norms-cost",
    texts=(
        "4 独立的自由: BN's need of large batches takes several GPUs, and energy",
        "4 独立的自由: GN trains on one GPU with small batches and saves energy",
    ),
    papers=("Wu, He 2018, arXiv:1803.08494",),
    theory="J/example = W (t(b) + t_sync) / b on any number of devices; t_sync(1) = 0",
    verdict="holds if",
    seconds=4,
    power="memory traced to the byte; 9 rounds tell 1.6 times in time, 30 with --full; "
    "energy is modelled, not measured",
    en=Words(
        title="GroupNorm on one device saves what BatchNorm spends on several",
        claimed="BatchNorm wants so large a batch that several devices are needed, "
        "which costs energy for messages and for the devices; GroupNorm needs one.",
        assumed="A device draws the same watts at work and waiting; sums of each layer "
        "cross an assumed link, and nothing covers the wait. Energy is modelled.",
        seen="GroupNorm's gradient does not depend on how the batch is cut, at the "
        "memory of a BatchNorm step and about its time. In the model the exchange "
        "costs energy; the devices alone cost none, since each works a part of the "
        "time.",
        answer="waiting for the exchange is a good part of a step: more devices alone "
        "use no more energy for an example",
    ),
    zh=Words(
        title="单设备的组归一化省下批量归一化花在多设备上的能量",
        claimed="批量归一化需要很大的批量，以致要用多个设备，为通信和设备本身耗能；组归"
        "一化只需一个。",
        assumed="设备工作与等待时功率相同；每层的统计量经过一条假设的链路，等待无法被计"
        "算掩盖。能量是模型算出的。",
        seen="组归一化的梯度与批量怎样切分无关，内存与批量归一化的一步相同，时间也相"
        "近。模型中同步要耗能；而多设备本身不多耗，因为各自只工作一部分时间。",
        answer="等待同步占一步中可观的一部分：单是设备多，并不增加每个样本的能耗",
    ),
    run=run,
)
