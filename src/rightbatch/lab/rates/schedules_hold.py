"""What each way of changing the batch with a decaying rate holds constant."""

from __future__ import annotations

from itertools import pairwise

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import Check, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.walks import Walk, timetable, walked
from rightbatch.schedules.lr_exchange import AlongRate
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Schedule, Stages

DECAY, STAGES, UPDATES = 0.8, 10, 200  # d; stages; updates of each
FIRST, LR, NOISE = 1024, 0.1, 256.0  # lr sigma^2 / (2 b) begins at 0.0125
SETTLED = 80  # updates at the end of a stage, when its variance has settled
# Power of d in the batch, by name.
POWERS = {
    "b constant": 0,
    "b ~ 1/d^k": -1,
    "b ~ d^k": 1,
    "b ~ d^2k": 2,
    "b ~ 1/d^2k": -2,
}


def batch_at(power: int, stage: int) -> int:
    """Of one stage of the schedule b_0 d^(power k)."""
    return max(1, round(FIRST * DECAY ** (power * stage)))


def decayed(power: int) -> tuple[Schedule, Rate, int]:
    """The schedule, the rate lr_0 d^k, and examples in all, stages alike in updates."""
    begins = [0]
    for stage in range(STAGES):
        begins.append(begins[-1] + UPDATES * batch_at(power, stage))
    rate = Rate.steps({begins[k]: DECAY**k for k in range(STAGES)})
    if power == 1:
        return AlongRate(FIRST, rate), rate, begins[-1]
    if power == 2:
        return AlongRate(FIRST, rate, keep="update-variance"), rate, begins[-1]
    stages = tuple((begins[k], batch_at(power, k)) for k in range(STAGES))
    return Stages(stages), rate, begins[-1]


def walk_under(power: int, trial: Trial) -> Walk:
    """The walk on a quadratic of curvature 1 under one schedule."""
    schedule, rate, examples = decayed(power)
    beside = None if isinstance(schedule, AlongRate) else rate
    table = timetable(schedule, lr=LR, examples=examples, rate=beside)
    chains = trial.size(2000, 20_000)
    seed = 10 * trial.seed + power + 2
    return walked(table, noise=NOISE, chains=chains, seed=seed)


def by_stage(walk: Walk, *, update: bool) -> list[Estimate]:
    """Temperature, or the variance of an update, at the end of every stage."""
    seen = []
    for stage in range(STAGES):
        end = (stage + 1) * UPDATES
        steps = slice(end - SETTLED, end)
        if update:
            seen.append(walk.late(walk.update_variance, steps))
        else:  # T = Var w (1 - lr / 2), where the curvature is 1
            settled = walk.late(walk.variance, steps)
            seen.append(settled.scale(1 - LR * DECAY**stage / 2))
    return seen


def temperature_law(power: int, stages: int) -> float:
    """T after so many stages over that at first: lr / b."""
    return float(DECAY ** ((1 - power) * stages))


def update_law(power: int, stages: int) -> float:
    """Variance of an update after so many stages over that at first: lr^2 / b."""
    return float(DECAY ** ((2 - power) * stages))


def run(trial: Trial) -> Seen:
    """Five schedules on one quadratic: temperature and update variance by stage."""
    checks: list[Check] = []
    temperatures, updates = [], []
    names = list(POWERS)
    other = dict(pairwise([*names, names[0]]))
    for name, power in POWERS.items():
        trial.tell(name)
        walk, last = walk_under(power, trial), STAGES - 1
        for what, law, update, drawn in (
            ("T", temperature_law, False, temperatures),
            ("variance of an update", update_law, True, updates),
        ):
            seen = by_stage(walk, update=update)
            drawn.append(Series(name, range(STAGES), seen, "points"))
            wrong = {f"that of {other[name]}": law(POWERS[other[name]], last)}
            checks.append(
                equals(
                    f"{what} at the end over the beginning, {name}",
                    law(power, last),
                    seen[-1].scale(1 / seen[0].value),
                    within=0.2,
                    wrong=wrong,
                )
            )
    charts = (
        Chart(
            "Temperature while the rate decays as d^k: only b ~ d^k holds it.",
            "学习率按 d^k 衰减时的温度：只有 b ~ d^k 使它不变。",
            plot(temperatures, "stage k", "temperature", log="y"),
        ),
        Chart(
            "Variance of one update: only b ~ d^2k holds it.",
            "单次更新的方差：只有 b ~ d^2k 使它不变。",
            plot(updates, "stage k", "variance of an update", log="y"),
        ),
    )
    return Seen(tuple(checks), charts)


CLAIM = Claim(
    id="schedules-hold",
    texts=(
        "1 高级策略师：动态批量大小调整: with a decaying rate, a batch can hold one number",
        "2 从比特到原子：优化的物理学: a larger batch or a smaller rate cools",
    ),
    papers=("Smith et al. 2018, arXiv:1711.00489",),
    theory="T ~ lr / b; Var(update) ~ lr^2 / b; with lr = lr_0 d^k and b = b_0 d^(pk)",
    verdict="holds",
    seconds=3,
    power="2000 chains: ratios to about 5 %, the nearest other schedule is a factor 7 "
    "off; --full has 20,000",
    en=Words(
        title="Five schedules, and what each holds constant",
        claimed="Batch and rate together set temperature and jitter; a schedule of one "
        "beside the other can be made to hold one of them.",
        assumed="Stages long enough to settle, a noise that does not change with the "
        "weights, a rate far from the edge of stability.",
        seen="Many walks on a quadratic follow five schedules while the rate decays by "
        "the same factor stage by stage. Each temperature and each variance of an "
        "update ends where its formula says.",
    ),
    zh=Words(
        title="五种批量方案各自保持什么不变",
        claimed="批量与学习率共同决定温度和抖动；让一个随另一个变化，可以保持其中一个量不变。",
        assumed="每个阶段足够长，噪声不随权重改变，学习率远离稳定边界。",
        seen="许多条轨迹在二次函数上按五种方案行走，学习率逐阶段按同一因子衰减。"
        "最终的温度和更新方差都与公式一致。",
    ),
    run=run,
)
