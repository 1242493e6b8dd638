"""A class of one in a thousand: stratified batches against weighting and luck."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rightbatch.data.loading.batch_sampler import BatchSampler
from rightbatch.data.loading.stream import BatchStream
from rightbatch.data.order.order import Order
from rightbatch.data.order.strata import Strata
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.training.accumulator import Accumulator

EXAMPLES, RARE, BATCH, KEPT = 100_000, 100, 1000, 50
FEATURES = 4
WEIGHTED, ONE, MANY = "weighted, by luck", "one in every batch", "50 in every batch"


def population(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features (examples, 4), labels, and weights by which both classes count alike."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(EXAMPLES) < RARE).float()
    features = torch.randn(EXAMPLES, FEATURES, generator=generator)
    features = features + labels[:, None]
    rare = EXAMPLES / (2 * RARE)
    common = EXAMPLES / (2 * (EXAMPLES - RARE))
    return features, labels, torch.where(labels == 1, rare, common)


def loss(model: nn.Module, batch: tuple[Any, ...]) -> Tensor:
    """Cross-entropy weighted by class; of stratified batches by their weights too."""
    stratified = len(batch) == 2
    (features, labels, weight), sampled = batch if stratified else (batch, 1.0)
    scores = model(features)[:, 0]
    losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    return (losses * weight * sampled).mean()


def gradients(
    data: tuple[Tensor, ...], order: str | Order, steps: int, seed: int
) -> Tensor:
    """Gradients of so many batches at weights zero, (steps, parameters)."""
    model = nn.Linear(FEATURES, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    accumulator = Accumulator(model, loss, optimizer, check=False)
    stream = BatchStream(data, BATCH, seed=seed, order=order)
    rows: list[Tensor] = []
    while len(rows) < steps:
        for step in stream.steps():
            accumulator.differentiate(step)
            parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            rows.append(torch.cat(parts).double())
    return torch.stack(rows[:steps])


def each_gradient(data: tuple[Tensor, ...]) -> Tensor:
    """Every example's unweighted gradient at weights zero, (examples, parameters)."""
    features, labels, _ = data
    ones = torch.ones(len(features), 1)
    return ((0.5 - labels)[:, None] * torch.cat([features, ones], 1)).double()


def variance_by_strata(data: tuple[Tensor, ...], kept: int) -> float:
    """Of a batch that always holds ``kept`` rare examples; each class counts half."""
    each, rare = each_gradient(data), data[1] == 1
    total = 0.0
    for group, k in ((each[rare], kept), (each[~rare], BATCH - kept)):
        total += 0.25 * float(group.var(0).sum()) / k * (1 - k / len(group))
    return total


def run(trial: Trial) -> Seen:
    """Batches of a thousand in which one example in a thousand is rare."""
    data = population(trial.seed)
    steps = trial.size(300, 3000)
    empty = [
        float(min(batch) >= RARE)
        for epoch in range(trial.size(10, 50))
        for batch in BatchSampler(EXAMPLES, BATCH, seed=100 * trial.seed + epoch)
    ]
    by: dict[str, Tensor] = {}
    for name, order in (
        (WEIGHTED, "shuffled"),
        (ONE, Strata(data[1], counts={1: 1})),
        (MANY, Strata(data[1], counts={1: KEPT})),
    ):
        trial.tell(name)
        by[name] = gradients(data, order, steps, trial.seed)
    weighted = each_gradient(data) * data[2][:, None]
    mean, rare_part = weighted.mean(0), weighted[:RARE].sum(0) / EXAMPLES
    var = {n: mean_of((g - mean).square().sum(1).tolist()) for n, g in by.items()}
    luck = float(weighted.var(0).sum()) / BATCH * (1 - BATCH / EXAMPLES)
    few, many = (variance_by_strata(data, kept) for kept in (1, KEPT))
    longest = {n: float(g.norm(dim=1).max() / mean.norm()) for n, g in by.items()}
    gain, free = (var[WEIGHTED].scale(1 / var[n].value) for n in (MANY, ONE))
    none = (1 - RARE / EXAMPLES) ** BATCH
    always, same = {"one in each": 0.0, "as often as not": 0.5}, {"no gain": 1.0}
    off = float((by[MANY].mean(0) - mean).norm() / mean.norm())
    without = {"no rare ones": float(rare_part.norm() / mean.norm())}
    held = {"50 in every batch": longest[MANY]}
    checks = (
        equals("share with none", none, mean_of(empty), margin=0.06, wrong=always),
        equals("Var, by luck over 50s", luck / many, gain, within=0.4, wrong=same),
        equals("Var, by luck over ones", luck / few, free, within=0.3, wrong=same),
        at_least("longest by luck, in |G|", 3.0, longest[WEIGHTED], wrong=held),
        at_most("mean of 50s off by, in |G|", 0.02, off, wrong=without),
    )
    shown, axis = list(range(80)), mean / (mean @ mean)
    series = [
        Series(n, shown, (g @ axis)[:80].tolist(), "points") for n, g in by.items()
    ]
    chart = Chart(
        "Each batch's gradient along the true one; 1 is right.",
        "每个批次的梯度在真实梯度方向上的分量；1 为正确。",
        plot(series, "batch", "gradient along the true one"),
    )
    return Seen(checks, (chart,))


CLAIM = Claim(
    id="rare-class",
    texts=("4 众核交响：分布式世界中的大批量: 0.1 % of 1,000; weights; strata",),
    papers=("Zhao and Zhang 2014, arXiv:1405.3080", "Neyman 1934 (strata)"),
    theory="Var = sum over classes of (share^2 tr S^2 / k)(1 - k/N_class); drawn alike "
    "the number of rare examples varies too: P(none) = 0.999^1000 = 0.368",
    verdict="holds",
    seconds=4,
    power="300 batches of each kind: ratios of variances to 35 %; 3,000 with --full",
    en=Words(
        title="Batches that always hold some of the rare class",
        claimed="With one positive in a thousand, a random batch of as many often "
        "holds none. Weights make rare, huge steps; strata have far less variance.",
        assumed="All have one expectation: both classes count half. Not shown is the "
        "price: rare examples come around often, and may be learnt by heart.",
        seen="Gradients of many batches, made three ways at the same weights, are "
        "compared. One rare example in every batch more than halves the variance of "
        "weighting, and each still comes once an epoch; fifty cut it far more.",
    ),
    zh=Words(
        title="让每个批次都含有罕见类",
        claimed="若千分之一为阳性，随机的一千个样本常常一个阳性也没有。加大罕见类的权重"
        "会带来罕见而巨大的跳跃；分层抽样的方差则小得多。",
        assumed="期望相同：两类在损失中各占一半。代价未显示：罕见样本可能被死记。",
        seen="在相同权重处比较三种方式抽取的许多批次的梯度。每批固定一个罕见样本，"
        "方差就不到加权的一半，而每个罕见样本每轮仍只出现一次；固定五十个则减少得多。",
    ),
    run=run,
)
