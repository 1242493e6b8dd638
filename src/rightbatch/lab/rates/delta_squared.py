"""The schedule b_0 d^(2k) beside a decaying rate shrinks the batch and heats."""

from __future__ import annotations

from rightbatch.lab.check import at_least, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.schedules_hold import (
    DECAY,
    FIRST,
    LR,
    NOISE,
    SETTLED,
    STAGES,
    UPDATES,
    batch_at,
    by_stage,
    decayed,
    temperature_law,
    walk_under,
)
from rightbatch.lab.rates.walks import Walk, stationary_variance, timetable, walked
from rightbatch.schedules.lr_exchange import AlongRate, InsteadOfDecay
from rightbatch.schedules.rate import Rate

LAST = STAGES - 1


def grown_instead(trial: Trial) -> Walk:
    """The walk where the batch grows as the rate would have decayed."""
    _, rate, examples = decayed(-1)
    schedule = InsteadOfDecay(FIRST, rate, 10 * FIRST)
    table = timetable(schedule, lr=LR, examples=examples)
    chains = trial.size(2000, 20_000)
    return walked(table, noise=NOISE, chains=chains, seed=10 * trial.seed + 7)


def rising_batches() -> list[int]:
    """Of the same rule beside a rate that rises by 1/d from stage to stage."""
    rate = Rate.steps({10_000 * k: DECAY ** (LAST - k) for k in range(STAGES)})
    rule = AlongRate(FIRST, rate, keep="update-variance")
    return [rule.batch_size(10_000 * k) for k in range(STAGES)]


def run(trial: Trial) -> Seen:
    """The schedule as written, and the two that do what is meant by it."""
    rule, _, examples = decayed(2)
    batches = [float(rule.batch_size(at)) for at in (0, examples - 1)]
    written, cooled = walk_under(2, trial), walk_under(0, trial)
    instead = grown_instead(trial)
    update, heat = by_stage(written, update=True), by_stage(written, update=False)
    end = slice(-SETTLED, None)
    same = instead.late(instead.variance, end).scale(
        1 / cooled.late(cooled.variance, end).value
    )
    same_theory = stationary_variance(LR, batch_at(-1, LAST), NOISE)
    same_theory /= stationary_variance(LR * DECAY**LAST, FIRST, NOISE)
    rising = rising_batches()
    checks = (
        equals(
            "variance of an update at the end over the beginning",
            1.0,
            update[-1].scale(1 / update[0].value),
            within=0.2,
            wrong={"b constant": DECAY ** (2 * LAST), "b ~ d^k": DECAY**LAST},
        ),
        at_least(
            "batch at the end over the beginning",
            1.0,
            batches[-1] / batches[0],
            wrong={"the factor d^2k of d = 0.8": DECAY ** (2 * LAST)},
        ),
        equals(
            "temperature at the end over the beginning: it heats",
            temperature_law(2, LAST),
            heat[-1].scale(1 / heat[0].value),
            within=0.2,
            part="correction",
            wrong={"it cools as the rate": DECAY**LAST, "it stays": 1.0},
        ),
        equals(
            "rate kept, b ~ 1/d^k: variance of w at the end over that of the decay",
            same_theory,
            same,
            within=0.2,
            part="correction",
            wrong={
                "as hot as b ~ d^2k": DECAY ** (-2 * LAST),
                "no cooling": 1 / DECAY**LAST,
            },
        ),
        at_least(
            "beside a rate that rises by 1/d: batch at the end over the beginning",
            1.0,
            rising[-1] / rising[0],
            part="correction",
            wrong={"beside one that decays": batches[-1] / batches[0]},
        ),
    )
    stages = range(STAGES)
    chart = plot(
        [
            Series("as written: b ~ d^2k", stages, heat, "points"),
            Series(
                "1/d^k", stages, [heat[0].value / DECAY**k for k in stages], "dashed"
            ),
            Series(
                "rate kept, b ~ 1/d^k",
                stages,
                [
                    instead.late(
                        instead.variance,
                        slice((k + 1) * UPDATES - SETTLED, (k + 1) * UPDATES),
                    ).scale(1 - LR / 2)
                    for k in stages
                ],
                "points",
            ),
            Series("d^k", stages, [heat[0].value * DECAY**k for k in stages], "dashed"),
        ],
        "stage k",
        "temperature",
        log="y",
    )
    caption = "The schedule as written heats while it should settle; its inverse cools."
    caption_zh = "照原式，本应冷却时却升温；倒过来增大批量才会冷却。"
    return Seen(checks, (Chart(caption, caption_zh, chart),))


CLAIM = Claim(
    id="delta-squared",
    texts=("1 高级策略师：动态批量大小调整: grow b_k = b_0 d^(2k) against lr_0 d^k",),
    papers=("Smith et al. 2018, arXiv:1711.00489",),
    theory="Var(update) ~ lr^2 / b stays; but d < 1: b falls as d^2k, T ~ lr / b ~ d^-k",
    verdict="fails as written",
    seconds=2,
    power="2000 chains: ratios to about 5 %, the wrong ones are a factor 7 off; --full "
    "has 20,000",
    en=Words(
        title="b_0 d^2k is no growing batch: it shrinks and heats",
        claimed="Increase the batch as b_0 d^2k while the rate decays as lr_0 d^k, and "
        "the variance of an update stays constant to the end.",
        assumed="The rate decays, so d is below 1. A batch that follows d^2k then falls "
        "too, whatever it is called.",
        seen="The product's schedule of this rule holds the variance of an update, as "
        "claimed, on a quadratic. But its batch shrinks to a few examples and the "
        "weights spread ever wider, when they should settle.",
        answer="fails as written: the batch falls and training heats as 1/d^k. To settle, "
        "keep the rate and let b = b_0 / d^k; b_0 d^2k grows only beside a rising rate.",
    ),
    zh=Words(
        title="b_0 d^2k 并不是增大批量：它缩小并升温",
        claimed="学习率按 lr_0 d^k 衰减时，按 b_0 d^2k 增大批量，可使更新的方差始终不变。",
        assumed="学习率衰减，即 d 小于 1。这时 d^2k 也在变小，批量实际上在减小。",
        seen="在二次函数上，这条规则确实保持了更新方差。但批量缩小到只有几个样本，"
        "权重散布越来越宽，而此时本应稳定下来。",
        answer="照原文不成立：批量下降，温度按 1/d^k 上升。要稳定下来，应保持学习率不变，"
        "令 b = b_0 / d^k；只有学习率上升时 b_0 d^2k 才是增大。",
    ),
    run=run,
)
