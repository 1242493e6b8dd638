"""What each way of changing the batch with a decaying rate holds constant."""

from __future__ import annotations

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import Check, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.walks import Array, Walk, timetable, walked
from rightbatch.schedules.lr_exchange import AlongRate
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.schedule import Schedule, Stages

DECAY, STAGES, UPDATES = 0.8, 10, 200  # d; stages; updates of each
FIRST, LR, NOISE = 1024, 0.1, 256.0  # lr sigma^2 / (2 b) begins at 0.0125
SETTLED = 80  # updates at the end of a stage, when its variance has settled
LAST = STAGES - 1
NAMES = {0: "b constant", -1: "1/d^k", 1: "d^k", 2: "d^2k", -2: "1/d^2k"}  # by power p


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


def walk_under(
    schedule: Schedule, rate: Rate | None, examples: int, trial: Trial, seed: int
) -> Walk:
    """The walk on a quadratic of curvature 1 under one schedule."""
    beside = None if hasattr(schedule, "rate") else rate
    table = timetable(schedule, lr=LR, examples=examples, rate=beside)
    chains, seed = trial.size(2000, 20_000), 10 * trial.seed + seed
    return walked(table, noise=NOISE, chains=chains, seed=seed)


def by_stage(walk: Walk, moment: Array) -> list[Estimate]:
    """A moment of the walk at the end of every stage."""
    ends = [(k + 1) * UPDATES for k in range(STAGES)]
    return [walk.mean(moment, slice(end - SETTLED, end)) for end in ends]


def temperatures(walk: Walk, decay: float = DECAY) -> list[Estimate]:
    """T = Var w (1 - lr / 2) at the end of every stage, curvature 1."""
    settled = by_stage(walk, walk.variance)
    return [v.scale(1 - LR * decay**k / 2) for k, v in enumerate(settled)]


def change(by_stage: list[Estimate]) -> Estimate:
    """The last stage over the first."""
    return by_stage[-1].scale(1 / by_stage[0].value)


def law(power: int, rate_power: int) -> float:
    """Last over first of lr^rate_power / b: of T with 1, of an update's with 2."""
    return float(DECAY ** ((rate_power - power) * LAST))


def run(trial: Trial) -> Seen:
    """Five schedules on one quadratic: temperature and update variance by stage."""
    checks: list[Check] = []
    drawn: dict[int, list[Series]] = {1: [], 2: []}
    for power, name in NAMES.items():
        trial.tell(name)
        walk = walk_under(*decayed(power), trial, power + 2)
        for rate_power, what, seen in (
            (1, "T", temperatures(walk)),
            (2, "update variance", by_stage(walk, walk.update_variance)),
        ):
            drawn[rate_power].append(Series(name, range(STAGES), seen, "points"))
            theory = law(power, rate_power)
            wrong = {n: law(p, rate_power) for p, n in NAMES.items() if p != power}
            label = f"{what}, last over first, {name}"
            checks.append(equals(label, theory, change(seen), within=0.2, wrong=wrong))
    heat = plot(drawn[1], "stage k", "temperature", log="y")
    update = plot(drawn[2], "stage k", "variance of an update", log="y")
    charts = (
        Chart(
            "Temperature: only b ~ d^k holds it.", "温度：只有 b ~ d^k 使它不变。", heat
        ),
        Chart(
            "One update: b ~ d^2k holds it.", "单次更新：b ~ d^2k 使它不变。", update
        ),
    )
    return Seen(tuple(checks), charts)


CLAIM = Claim(
    id="schedules-hold",
    texts=(
        "1 高级策略师：动态批量大小调整: a batch beside a decay",
        "2 从比特到原子：优化的物理学: a larger batch or a smaller rate cools",
    ),
    papers=("Smith et al. 2018, arXiv:1711.00489",),
    theory="T ~ lr / b; Var(update) ~ lr^2 / b; with lr = lr_0 d^k and b = b_0 d^(pk)",
    verdict="holds",
    seconds=3,
    power="2000 chains: ratios to 5 %, other schedules are 7 x off; --full: 20,000",
    en=Words(
        title="Five schedules, and what each holds constant",
        claimed="Batch and rate set temperature and jitter; together they can hold one "
        "of them.",
        assumed="Stages long enough to settle; a noise that is the same at all "
        "weights.",
        seen="Walks on a quadratic follow five schedules while the rate decays by "
        "stages. Every temperature and update variance ends where its formula says.",
    ),
    zh=Words(
        title="五种批量方案各自保持什么不变",
        claimed="批量与学习率共同决定温度和抖动；让一个随另一个变化，可以保持其中之一"
        "。",
        assumed="每个阶段足够长，噪声不随权重改变。",
        seen="许多条轨迹在二次函数上按五种方案行走，学习率逐阶段衰减。最终的温度和更新"
        "方差都与公式一致。",
    ),
    run=run,
)
