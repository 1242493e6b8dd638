"""Which rule for the rate serves which optimizer, with "scale nothing" beside them."""

from __future__ import annotations

import math

from rightbatch.lab.check import at_least, at_most
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import bars
from rightbatch.lab.rates.small_net import (
    EPOCH,
    log_ratio,
    loss_after,
    seeds_of,
    small_job,
)
from rightbatch.lab.samples import mean_of
from rightbatch.schedules.scaling import Rule, scaling_for

FIRST, BATCH = 8, 128
RULES: tuple[Rule, ...] = ("none", "sqrt", "linear")
# So that SGD bears 16 times its rate; Adam near its best at b = 8 [measured].
RATES = {"SGD": 0.03, "Adam": 0.012}


def losses(optimizer: str, rule: Rule, batch_size: int, seeds: range) -> list[float]:
    """Training losses after three epochs, at the rate that the rule gives a batch."""
    adam = optimizer == "Adam"
    family = "adam" if adam else "sgd"
    lr = RATES[optimizer] * scaling_for(family, FIRST, batch_size, rule=rule).lr
    return [
        loss_after(
            small_job(seed, adam=adam), batch_size=batch_size, lr=lr, examples=3 * EPOCH
        )
        for seed in seeds
    ]


def run(trial: Trial) -> Seen:
    """Loss after equal examples at 16 times the batch, rule by rule."""
    seeds = seeds_of(trial, 6, 12)
    few = seeds[: trial.size(2, 12)]  # the small batch takes the time
    large: dict[str, dict[Rule, list[float]]] = {}
    over_small = {}
    for optimizer in RATES:
        trial.tell(optimizer)
        small = losses(optimizer, "none", FIRST, few)
        large[optimizer] = {r: losses(optimizer, r, BATCH, seeds) for r in RULES}
        for rule, values in large[optimizer].items():
            over_small[f"{optimizer}, {rule}"] = log_ratio(values, small)
    sgd, adam = large["SGD"], large["Adam"]
    apart = log_ratio(adam["linear"], adam["sqrt"])
    better = log_ratio(adam["sqrt"], adam["none"])
    others = {rule: over_small[f"SGD, {rule}"].value for rule in ("sqrt", "none")}
    as_sgd = {"as under SGD": log_ratio(sgd["linear"], sgd["sqrt"]).value}
    checks = (
        at_most(
            "SGD: log loss over b = 8, linear",
            0.4,
            over_small["SGD, linear"],
            wrong=others,
        ),
        at_least("Adam: linear over root", 0.2, apart, part="limit", wrong=as_sgd),
        at_most(
            "Adam: root over none", -0.2, better, part="limit", wrong={"same": 0.0}
        ),
    )
    ends = {f"{o}, {r}": v for o, by_rule in large.items() for r, v in by_rule.items()}
    logs = {
        name: mean_of([math.log(v) for v in values]) for name, values in ends.items()
    }
    means = {name: log.map(math.exp) for name, log in logs.items()}
    chart = bars(means, "training loss at b = 128, equal examples", log=True)
    caption = "At 16 times the batch: linear serves SGD, the root serves Adam."
    caption_zh = "批量变为 16 倍：线性规则适合 SGD，平方根规则适合 Adam。"
    return Seen(checks, (Chart(caption, caption_zh, chart),))


CLAIM = Claim(
    id="which-rule",
    texts=(
        "2 现代前沿：微调引擎: batch times k, learning rate times k",
        "1 超参数的交织之舞: batch times k, learning rate times sqrt(k)",
    ),
    papers=("Goyal et al. 2017, arXiv:1706.02677", "Malladi 2022, arXiv:2205.10287"),
    theory="effect of an example: lr / b under SGD, lr / sqrt(b) under Adam",
    verdict="holds if",
    seconds=6,
    power="six seeds, two at b = 8: losses a factor 1.3 apart; --full: twelve of both",
    en=Words(
        title="Linear for SGD, the root for Adam",
        claimed="Two rules compete: let the rate follow the batch in proportion, or by "
        "its root.",
        assumed="The larger rate is still stable, and was not far too low before: then "
        "the rule that raises it most would win.",
        seen="A net on real digits trains at 16 times the batch over equal examples. "
        "Under SGD the linear rule keeps near the loss of the small batch; under Adam "
        "the root is better. Scaling nothing lags in both.",
        answer="the optimizer is SGD; under Adam the root rule takes its place",
    ),
    zh=Words(
        title="SGD 用线性规则，Adam 用平方根规则",
        claimed="两条规则争同一个位置：学习率随批量成正比，或随其平方根变化。",
        assumed="放大后的学习率仍然稳定；原来也不是太低，否则抬得最高的规则就会赢。",
        seen="用 16 倍批量、同样多的真实数字图像训练。SGD 下线性规则接近小批量的损失；"
        "Adam 下平方根规则更好。什么都不缩放则都落后。",
        answer="优化器为 SGD；若是 Adam，应改用平方根规则",
    ),
    run=run,
)
