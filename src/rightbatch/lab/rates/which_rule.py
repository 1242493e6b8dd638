"""Which rule for the rate serves which optimizer, with "scale nothing" beside them."""

from __future__ import annotations

import math

from rightbatch.core.estimate import Estimate
from rightbatch.lab.check import at_least, at_most
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import bars
from rightbatch.lab.rates.small_net import loss_after, seeds_of, small_job
from rightbatch.lab.samples import mean_of
from rightbatch.schedules.scaling import Rule, scaling_for

FIRST, BATCH = 8, 128
RULES: tuple[Rule, ...] = ("none", "sqrt", "linear")
RATES = {"SGD": 0.05, "Adam": 0.01}  # near the best of b = 8 [measured]


def scaled_losses(
    optimizer: str, rule: Rule, seeds: range, examples: int
) -> list[float]:
    """Log training loss of every seed at the large batch under a rule."""
    adam = optimizer == "Adam"
    scaling = scaling_for("adam" if adam else "sgd", FIRST, BATCH, rule=rule)
    lr = RATES[optimizer] * scaling.lr
    return [
        math.log(
            loss_after(
                small_job(seed, lr=lr, adam=adam),
                batch_size=BATCH,
                lr=lr,
                examples=examples,
            )
        )
        for seed in seeds
    ]


def run(trial: Trial) -> Seen:
    """Loss after equal examples at 16 times the batch, rule by rule."""
    examples = 4 * 1437
    seeds = seeds_of(trial, 6, 12)
    few = seeds[: trial.size(2, 12)]  # the small batch takes the time
    gaps: dict[str, dict[Rule, Estimate]] = {}
    logs: dict[str, dict[Rule, list[float]]] = {}
    bar: dict[str, Estimate] = {}
    for optimizer, lr in RATES.items():
        trial.tell(optimizer)
        base = [
            math.log(
                loss_after(
                    small_job(seed, lr=lr, adam=optimizer == "Adam"),
                    batch_size=FIRST,
                    lr=lr,
                    examples=examples,
                )
            )
            for seed in few
        ]
        logs[optimizer] = {
            rule: scaled_losses(optimizer, rule, seeds, examples) for rule in RULES
        }
        gaps[optimizer] = {}
        for rule, values in logs[optimizer].items():
            paired = [a - b for a, b in zip(values, base, strict=False)]
            gaps[optimizer][rule] = mean_of(paired)
            bar[f"{optimizer}, {rule}"] = gaps[optimizer][rule].map(math.exp)

    def apart(optimizer: str, one: Rule, other: Rule) -> Estimate:
        a, b = logs[optimizer][one], logs[optimizer][other]
        return mean_of([x - y for x, y in zip(a, b, strict=True)])

    sgd = gaps["SGD"]
    checks = (
        at_most(
            "SGD: log of the loss over that at b = 8, linear",
            0.7,
            sgd["linear"],
            wrong={"root rule": sgd["sqrt"].value, "rate kept": sgd["none"].value},
        ),
        at_least(
            "Adam: log of the loss, linear over root",
            0.2,
            apart("Adam", "linear", "sqrt"),
            part="limit",
            wrong={"as under SGD": apart("SGD", "linear", "sqrt").value},
        ),
        at_most(
            "Adam: log of the loss, root over rate kept",
            -0.2,
            apart("Adam", "sqrt", "none"),
            part="limit",
            wrong={"rules do nothing": 0.0},
        ),
    )
    chart = bars(bar, "training loss over that at b = 8, equal examples", log=True)
    caption = "At 16 times the batch: linear serves SGD, the root serves Adam."
    caption_zh = "批量变为 16 倍：线性规则适合 SGD，平方根规则适合 Adam。"
    return Seen(checks, (Chart(caption, caption_zh, chart),))


CLAIM = Claim(
    id="which-rule",
    texts=(
        "2 现代前沿：微调引擎: batch times k, learning rate times k",
        "1 超参数的交织之舞: batch times k, learning rate times sqrt(k)",
    ),
    papers=(
        "Goyal et al. 2017, arXiv:1706.02677",
        "Malladi et al. 2022, arXiv:2205.10287",
    ),
    theory="effect of an example: lr / b under SGD, lr / sqrt(b) under Adam's normalising",
    verdict="holds if",
    seconds=5,
    power="six seeds at the large batch, two at the small one: factors of 1.3 in the "
    "loss are told apart; --full has twelve of both",
    en=Words(
        title="Linear for SGD, the root for Adam",
        claimed="Two rules compete for one job: let the rate follow the batch in "
        "proportion, or by its square root.",
        assumed="The rate was near its best at the small batch: had it been far too low, "
        "whatever rule raises it most would win.",
        seen="A net on real digits is trained with 16 times the batch over the same "
        "examples. Under SGD the linear rule keeps the loss near that of the small "
        "batch and the root lags far behind; under Adam it is the other way round.",
        answer="holds if the optimizer is SGD; under Adam, whose step does not grow with "
        "the gradient, the root rule takes its place.",
    ),
    zh=Words(
        title="SGD 用线性规则，Adam 用平方根规则",
        claimed="两条规则争同一个位置：学习率随批量成正比，或随其平方根变化。",
        assumed="小批量下的学习率已接近最佳。若它本来就太低，哪条规则把它抬得最高，哪条就会赢。",
        seen="用 16 倍的批量在同样多的真实数字图像上训练小网络。SGD 下线性规则的损失接近"
        "小批量，平方根规则远远落后；Adam 下则相反。",
        answer="成立的条件是：优化器为 SGD；Adam 的步长不随梯度大小变化，应换成平方根规则。",
    ),
    run=run,
)
