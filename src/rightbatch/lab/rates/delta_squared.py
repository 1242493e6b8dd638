"""The schedule b_0 d^(2k) beside a decaying rate shrinks the batch and heats."""

from __future__ import annotations

from rightbatch.lab.check import at_least, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.rates.schedules_hold import (
    DECAY,
    FIRST,
    STAGES,
    by_stage,
    change,
    decayed,
    law,
    temperatures,
    walk_under,
)
from rightbatch.schedules.lr_exchange import InsteadOfDecay


def run(trial: Trial) -> Seen:
    """The schedule as written, and the two that do what is meant by it."""
    schedule, _, seen = decayed(2)
    written, cooled = (walk_under(*decayed(p), trial, p + 2) for p in (2, 0))
    _, rate, examples = decayed(-1)
    exchange = InsteadOfDecay(FIRST, rate, 10 * FIRST)
    instead = temperatures(walk_under(exchange, None, examples, trial, 7), decay=1.0)
    update, heat = by_stage(written, written.update_variance), temperatures(written)
    same = instead[-1].scale(1 / temperatures(cooled)[-1].value)
    factors = [DECAY**k for k in range(STAGES)]
    batch = schedule.batch_size(seen) / schedule.start
    others = {"b constant": law(0, 2), "b ~ d^k": law(1, 2)}
    colder = {"cools as the rate": law(0, 1), "stays": 1.0}
    hotter = {"as hot as d^2k": law(2, 1) / law(0, 1), "no cooling": 1 / law(0, 1)}
    checks = (
        equals("update variance", 1.0, change(update), within=0.2, wrong=others),
        at_least("batch, last over first", 1.0, batch, wrong={"d^2k": law(0, 2)}),
        equals(
            "T, last over first: it heats",
            law(2, 1),
            change(heat),
            within=0.2,
            part="correction",
            wrong=colder,
        ),
        equals(
            "last T, rate kept and b ~ 1/d^k, over that of the decay",
            1.0,
            same,
            within=0.2,
            part="correction",
            wrong=hotter,
        ),
    )
    stages, first = range(STAGES), heat[0].value
    chart = plot(
        [
            Series("as written: b ~ d^2k", stages, heat, "points"),
            Series("1/d^k", stages, [first / f for f in factors], "dashed"),
            Series("rate kept, b ~ 1/d^k", stages, instead, "points"),
            Series("d^k", stages, [first * f for f in factors], "dashed"),
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
    theory="Var(update) ~ lr^2 / b stays; but d < 1: b falls as d^2k, T ~ lr/b ~ d^-k",
    verdict="fails as written",
    seconds=2,
    power="2000 chains: ratios to 5 %, wrong ones are 7 x off; --full has 20,000",
    en=Words(
        title="b_0 d^2k is no growing batch: it shrinks and heats",
        claimed="Increase the batch as b_0 d^2k while the rate decays as lr_0 d^k, and "
        "the variance of an update stays constant to the end.",
        assumed="The rate decays, so d is below 1, and a batch that follows d^2k "
        "falls.",
        seen="On a quadratic this schedule holds the variance of an update; but its "
        "batch shrinks and the weights spread ever wider, when they should settle.",
        answer="the batch falls, training heats as 1/d^k. To settle, "
        "keep the rate and let b = b_0 / d^k",
    ),
    zh=Words(
        title="b_0 d^2k 并不是增大批量：它缩小并升温",
        claimed="学习率按 lr_0 d^k 衰减时，按 b_0 d^2k 增大批量，更新的方差始终不变。",
        assumed="学习率衰减，即 d 小于 1；这时 d^2k 变小，批量实际上在减小。",
        seen="在二次函数上，这条规则确实保持了更新方差。但批量不断缩小，权重"
        "散布越来越宽，而此时本应稳定下来。",
        answer="批量下降，温度按 1/d^k 上升。应保持学习率不变，令 b = b_0 / d^k",
    ),
    run=run,
)
