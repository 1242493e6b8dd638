"""A step takes T0 + k B^gamma; what that makes of an epoch at B = 400 over B = 1."""

from __future__ import annotations

from torch import nn

from rightbatch.fit.step_time import fit_time
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.cost.cpu_time import one_thread, timed
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.training_runs import digits_job, started
from rightbatch.measure.time import measure_times

LARGE, GAMMA = 400, 0.5  # the text's own example, against 1


def epoch_factor(overhead: float, gamma: float = GAMMA) -> float:
    """How much faster an epoch is at B = 400 than at 1; overhead in units of k.

    Example:
        >>> epoch_factor(0.0), epoch_factor(18.0)
        (20.0, 200.0)
    """
    return LARGE * (overhead + 1) / (overhead + LARGE**gamma)


def thin_layers() -> nn.Module:
    """So little work an example that overhead is nearly all of a step."""
    thin = [nn.Linear(8, 8) for _ in range(24)]
    return nn.Sequential(nn.Linear(64, 8), *thin, nn.Linear(8, 10))


def convolutions() -> nn.Module:
    """So much work an example that overhead is soon nothing."""
    first = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()]
    second = [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(32 * 64, 10))


def run(trial: Trial) -> Seen:
    """The formula's arithmetic, then two jobs on this machine."""
    made = {2**i: [1e-4 * (20 + 2 ** (GAMMA * i))] * 5 for i in range(10)}
    law = fit_time([timed(b, seconds) for b, seconds in made.items()])
    models = {"thin layers": thin_layers, "convolutions": convolutions}
    factors, series = [], []
    for name, model in models.items():
        trial.tell(f"timing {name}")
        job = digits_job(model=model, batch_size=LARGE, seed=trial.seed)
        with one_thread(), started(job) as state:
            measured, _, _ = measure_times(state, budget_s=trial.size(2.0, 10.0))
        points = [timed(p.micro_batch, [*p.process_rounds]) for p in measured]
        at = {p.micro_batch: p.step_time_s for p in points}
        least = {p.micro_batch: min(p.rounds) for p in points}  # of a busy machine
        factors.append(LARGE * least[1] / least[LARGE])
        here = fit_time(points)
        series += [
            Series(name, list(at), list(at.values()), "points"),
            Series(f"{name}, law", list(at), [*map(here.seconds, at)]),
        ]
    few, many = factors
    gamma, by_law = (
        float(law.parameters[2]),
        LARGE * law.seconds(1) / law.seconds(LARGE),
    )
    none, much = epoch_factor(0.0), epoch_factor(20.0)
    checks = (
        equals("gamma, made times", GAMMA, gamma, within=0.02, wrong={"a line": 1.0}),
        at_least("epoch 1 / 400, T0 = 20 k", 200.0, by_law, wrong={"T0 = 0": none}),
        at_least("here, thin layers", 200.0, few, wrong={"convolutions": many}),
        at_most("T0 = 0", 200.0, none, wrong={"T0 = 20 k": much}, part="limit"),
        at_most("convolutions", 100.0, many, wrong={"thin layers": few}, part="limit"),
    )
    chart = plot(series, "batch size B", "CPU seconds of a step", log="xy")
    caption = "Where the line is flat a larger batch is free."
    zh = "线平之处，加大批量几乎免费。"
    return Seen(checks, (Chart(caption, zh, chart),))


CLAIM = Claim(
    id="step-time-law",
    texts=(
        "1 并行的力量：计算效率: T_update(B) = T_overhead + k B^gamma, gamma < 1",
        "1 并行的力量：计算效率: B = 400 makes an epoch more than 200 times faster",
    ),
    theory="epoch(1)/epoch(B) = B (T0 + k) / (T0 + k B^gamma); > 200 at 400: T0 > 18 k",
    verdict="holds if",
    seconds=6,
    power="the formula is exact; here factors of 1.5 are told; --full times longer",
    en=Words(
        title="A batch of 400 makes an epoch 200 times faster",
        claimed="A step takes T0 + k B^gamma with gamma about 0.5, so that 400 at once "
        "pass over the data more than 200 times faster than one by one.",
        assumed="The factor is 400 (T0 + k) / (T0 + 20 k): 20 without overhead, 400 at "
        "the very most.",
        seen="The fit finds gamma in made times. On this machine thin layers, nearly "
        "all overhead, gain more than 200; convolutions, nearly all work, far less.",
        answer="a step's fixed cost is above 18 times the work of one example",
    ),
    zh=Words(
        title="批量 400 让一个周期快 200 倍",
        claimed="每步 T0 + k B^gamma，gamma 约 0.5，一次 400 个比逐个快 200 倍以上。",
        assumed="倍数是 400 (T0 + k) / (T0 + 20 k)：没有开销时只有 20，最多 400。",
        seen="拟合能还原 gamma。本机上，几乎全是开销的薄层网络快 200 倍以上；几乎全是计"
        "算的卷积网络则少得多。",
        answer="每步的固定开销超过单个样本计算量的 18 倍",
    ),
    run=run,
)
