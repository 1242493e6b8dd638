"""What BatchNorm and GroupNorm cost: memory, time, and energy on several devices."""

from __future__ import annotations

from functools import partial

from torch import nn

from rightbatch.cluster.network import ASSUMED
from rightbatch.core.torch_private import BatchNorm
from rightbatch.coupling.norm_conversion import convert_norms
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.cpu_time import cpu_seconds, ratio
from rightbatch.lab.cost.full_batch_memory import peak_bytes
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.training_runs import digits_job, started

MICRO, DEVICES = 8, 4  # BatchNorm is to see 32 examples, and a device holds 8


def made_model(norm: str) -> nn.Module:
    """Three convolutions, normalised over the batch or within an example."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for channels, width in ((1, 32), (32, 32), (32, 64)):
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    model = nn.Sequential(*layers, *ends)
    if norm == "group":
        convert_norms(model, "group")
    return model


def exchange_s(model: nn.Module) -> float:
    """Seconds of a step in which devices only share BatchNorm's statistics.

    Two sums a channel forward and two backward, over a cloud's usual link [assumed].
    """
    widths = [m.num_features for m in model.modules() if isinstance(m, BatchNorm)]
    return sum(2 * ASSUMED.all_reduce_s(2 * 4 * w, DEVICES) for w in widths)


def energy(step_s: float, waiting_s: float) -> float:
    """Of an example, over that on one device that waits for nobody.

    A device draws the same watts at work and waiting, and more devices share more
    examples: both cancel.
    """
    return 1 + waiting_s / step_s


def run(trial: Trial) -> Seen:
    """Both networks at one micro-batch, then the model of several devices."""
    batch, group = (
        digits_job(model=partial(made_model, norm), seed=trial.seed)
        for norm in ("batch", "group")
    )
    many = MICRO * DEVICES
    trial.tell("tracing memory")
    bytes_b, bytes_g, together = (
        peak_bytes(job, b) for job, b in ((batch, MICRO), (group, MICRO), (batch, many))
    )
    trial.tell("timing")
    with started(batch) as run_b, started(group) as run_g:
        steps = [(run_b, MICRO, MICRO), (run_g, MICRO, MICRO), (run_b, many, many)]
        step_b, step_g, step_all = cpu_seconds(steps, trial.size(9, 30))
        waiting_s = exchange_s(run_b.network)
    here_s = min(step_b)
    memory, slower = bytes_g / bytes_b, ratio(step_g, step_b)
    synced, rarely = energy(here_s, waiting_s), energy(1.0, waiting_s)
    all_memory, all_slower = bytes_g / together, ratio(step_all, step_b).value
    checks = (
        equals(
            "memory, GN / BN", 1.0, memory, margin=0.05, wrong={"of 32": all_memory}
        ),
        at_most("CPU time, GN / BN", 1.5, slower, wrong={"of 32": all_slower}),
        at_least("modelled energy, BN on 4 / 1", 1.01, synced, wrong={"1 s": rarely}),
        at_most(
            "in steps of 1 s", 1.01, rarely, wrong={"watts add": DEVICES}, part="limit"
        ),
    )
    steps_s = [1e-4 * 1.5**i for i in range(23)]
    series = [
        Series("BatchNorm over 4", steps_s, [energy(s, waiting_s) for s in steps_s]),
        Series("GroupNorm on one", steps_s, [1.0] * len(steps_s), "dashed"),
        Series("this machine's step", [here_s], [synced], "points"),
    ]
    chart = plot(series, "seconds of a step of 8", "energy of an example", log="xy")
    caption = "Modelled with 100 Gb/s and 20 us: waiting costs energy, sharing none."
    zh = "模型（假设 100 Gb/s、20 us）：等待耗能，分担工作不耗能。"
    return Seen(checks, (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="norms-cost",
    texts=("4 独立的自由: BN takes several GPUs and energy; GN trains on one",),
    papers=("Wu, He 2018, arXiv:1803.08494",),
    theory="J/example = W (t(b) + t_sync) / b on any number of devices; t_sync(1) = 0",
    verdict="holds if",
    seconds=4,
    power="energy is modelled; 9 rounds tell a factor of 1.5 in time, 30 with --full",
    en=Words(
        title="GroupNorm on one device saves what BatchNorm spends on several",
        claimed="BatchNorm wants so large a batch that it takes several devices, which "
        "costs energy for messages and devices; GroupNorm needs one.",
        assumed="A device draws the same watts at work and waiting, each layer's sums "
        "cross an assumed link, and nothing covers the wait.",
        seen="At one micro-batch both take the same memory and about the same time. "
        "Energy is modelled, not measured: waiting for the exchange costs some where "
        "steps are short, and hardly any where they are long.",
        answer="waiting for the exchange is a good part of a step, by the model: more "
        "devices alone use no more energy for an example",
    ),
    zh=Words(
        title="单设备的组归一化省下批量归一化花在多设备上的能量",
        claimed="批量归一化要用多个设备凑足批量而耗能；组归一化只需一个。",
        assumed="设备工作与等待时功率相同；统计量经过假设的链路，等待无法掩盖。",
        seen="微批量相同时，两者内存相同、时间相近。能耗是模型算出的，并未测量：步子短"
        "时，等待同步要耗能；步子长时几乎不耗。",
        answer="等待同步占一步中可观的一部分（按模型）；单是设备多，并不增加每个样本的能耗",
    ),
    run=run,
)
