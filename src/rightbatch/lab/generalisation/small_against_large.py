"""A large batch at a small batch's rate finds a sharper and worse minimum."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.core.estimate import Estimate
from rightbatch.job.job import Job
from rightbatch.lab.check import at_least, at_most
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.generalisation.ratio import ratio
from rightbatch.lab.plots import Series, plot
from rightbatch.lab.samples import mean_of
from rightbatch.lab.training_runs import digits_job, looked, started
from rightbatch.landscape import sharpness
from rightbatch.schedules.scaling import scaling_for

EXAMPLES, NOISE = 300, 0.2  # of digits; the share that has a wrong class
SMALL, MIDDLE = 8, 64
RATE = 0.1
MATCHED = 0.25  # training loss: part of the wrong classes is learned by heart
EPOCHS = 10  # for the comparison at equal epochs
MOST_STEPS = 20_000


@dataclass(frozen=True)
class Point:
    """A run at one moment: losses, and the top eigenvalue of the training loss."""

    train: float
    held: float
    top: float


def noisy_digits(seed: int) -> tuple[Job, tuple[Tensor, Tensor]]:
    """A small MLP on few digits, some classes wrong, and the digits left out."""
    whole = digits_job()
    pixels, classes = whole.data
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator)
    kept, held = order[:EXAMPLES], order[EXAMPLES:]
    wrong = torch.rand(EXAMPLES, generator=generator) < NOISE
    shift = torch.randint(1, 10, (EXAMPLES,), generator=generator)
    job = dataclasses.replace(
        whole,
        model=lambda: nn.Sequential(
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        ),
        data=(pixels[kept], (classes[kept] + shift * wrong) % 10),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=RATE),
        target=None,
        evaluate=None,
        seed=seed,
    )
    return job, (pixels[held], classes[held])


def course(
    job: Job, held: tuple[Tensor, Tensor], batch: int, factor: float
) -> tuple[Point, Point]:
    """A run after equal epochs, and at the matched training loss."""
    early: Point | None = None

    def loss_on(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
        return looked(lambda m: F.cross_entropy(m(data[0]), data[1]).item(), model)

    with started(job) as run:
        run.split(batch)
        for group in run.optimizer.param_groups:
            group["lr"] *= factor

        def point() -> Point:
            top = sharpness(job, run.network, most_probes=2).top.value
            train, new = (loss_on(run.network, data) for data in (job.data, held))
            return Point(train, new, top)

        while run.steps % 10 or loss_on(run.network, job.data) > MATCHED:
            if run.steps == MOST_STEPS:
                raise JobError(
                    f"training loss above {MATCHED} after {MOST_STEPS} steps"
                )
            run.step()
            if early is None and run.examples >= EPOCHS * EXAMPLES:
                early = point()
        return early or point(), point()


def run(trial: Trial) -> Seen:
    """Runs of several batches and rates, stopped at the same training loss."""
    root = scaling_for("sgd", SMALL, EXAMPLES, rule="sqrt").lr
    kinds = {
        f"b = {SMALL}": (SMALL, 1.0),
        f"b = {MIDDLE}, same rate": (MIDDLE, 1.0),
        f"b = {EXAMPLES}, same rate": (EXAMPLES, 1.0),
        f"b = {EXAMPLES}, rate x sqrt(b)": (EXAMPLES, root),
    }
    small, _, large, scaled = kinds
    seeds = range(trial.seed * 100, trial.seed * 100 + trial.size(6, 16))
    early: dict[str, list[Point]] = {kind: [] for kind in kinds}
    matched: dict[str, list[Point]] = {kind: [] for kind in kinds}
    for seed in seeds:
        job, held = noisy_digits(seed)
        for kind, (batch, factor) in kinds.items():
            trial.tell(f"{kind}, split {seed}")
            for points, one in zip(
                (early, matched), course(job, held, batch, factor), strict=True
            ):
                points[kind].append(one)

    def over(
        points: dict[str, list[Point]], above: str, below: str, name: str
    ) -> Estimate:
        """Geometric mean of the ratio, split by split."""
        pair = (points[above], points[below])
        return ratio(*([getattr(p, name) for p in kind] for kind in pair))

    def ranks(of: list[dict[str, list[Point]]]) -> Estimate:
        """Spearman's correlation of top eigenvalue and held-out loss, by split."""
        values = []
        for i in range(len(seeds)):
            points = [points[kind][i] for points in of for kind in kinds]
            tops, losses = [p.top for p in points], [p.held for p in points]
            values.append(float(stats.spearmanr(tops, losses).statistic))
        mean = mean_of(values)
        return replace(mean, low=max(mean.low, -1.0), high=min(mean.high, 1.0))

    top, held_out = (over(matched, large, small, n) for n in ("top", "held"))
    top_scaled = over(matched, scaled, small, "top")
    top_early = over(early, large, small, "top")
    both = ranks([early, matched])
    checks = (
        at_least(
            f"top eigenvalue, {large}, over that of {small}, at equal training loss",
            2.0,
            top,
            wrong={"rate scaled with the batch": top_scaled.value},
        ),
        at_least(
            f"held-out loss, {large}, over that of {small}, at equal training loss",
            1.04,
            held_out,
            wrong={"a batch that does not matter": 1.0},
        ),
        at_least(
            "rank correlation of top eigenvalue and held-out loss, equal training loss",
            0.5,
            ranks([matched]),
            wrong={"with training loss left to differ": both.value},
        ),
        at_most(
            f"top eigenvalue, {large}, over that of {small}, after {EPOCHS} epochs",
            0.8,
            top_early,
            part="limit",
            wrong={"at equal training loss": top.value},
        ),
        at_least(
            f"held-out loss, {large}, over {scaled}, at equal training loss",
            1.05,
            over(matched, large, scaled, "held"),
            part="limit",
            wrong={"a rate that does not matter": 1.0},
        ),
    )
    chart = plot(
        [
            Series(
                k, [p.top for p in matched[k]], [p.held for p in matched[k]], "points"
            )
            for k in kinds
        ]
        + [
            Series(
                f"all, after {EPOCHS} epochs",
                [p.top for points in early.values() for p in points],
                [p.held for points in early.values() for p in points],
                "points",
            )
        ],
        "top eigenvalue of the training loss",
        "held-out loss",
        log="x",
    )
    return Seen(checks, (Chart(CAPTION, CAPTION_ZH, chart),))


CAPTION = (
    "At one training loss the sharper run is the worse one, and its rate is small for "
    "its batch; after equal epochs sharpness tells nothing."
)
CAPTION_ZH = (
    "训练损失相同时，越尖锐的结果越差，而且它的学习率相对批量太小；"
    "若只是训练轮数相同，尖锐程度说明不了什么。"
)
CLAIM = Claim(
    id="small-against-large",
    texts=(
        "2 隐藏的天才：噪声是特性，而非缺陷: 小批量偏好泛化更好的平坦最小值",
        "3 隐式正则化与泛化: 小批量 SGD 倾向于收敛到平坦的最小值",
        "3 实践中的权衡: 大批量更容易陷入尖锐的局部最小值",
        "5 关于“好”的辩证：平坦 vs 尖锐: 大批次陷入尖锐的坑，泛化差",
    ),
    papers=(
        "Keskar et al. 2017, arXiv:1609.04836",
        "Hoffer, Hubara, Soudry 2017, arXiv:1705.08741",
    ),
    theory="at equal training loss and equal eta: lambda_max and held-out loss grow "
    "with b; with eta times sqrt(b) they do not",
    verdict="holds if",
    seconds=60,
    power="6 splits of the digits, each trained by all batches: top eigenvalues a "
    "factor of 2 apart and held-out losses 15 % apart are told; 16 splits with --full",
    en=Words(
        title="Small batches find flatter and better minima",
        claimed="The noise of small batches keeps them out of sharp minima; large "
        "batches fall into the nearest sharp one and do worse on new data.",
        assumed="One network, one training set, one learning rate, and runs compared "
        "when they fit the training data equally well.",
        seen="300 digits, a fifth with a wrong class, are trained until the training "
        "loss is the same. At the same rate the large batch is then sharper and worse. "
        "After equal epochs it is the flatter one, as it has hardly been trained; with "
        "a rate scaled by sqrt(b) it is neither sharper nor worse.",
        answer="both have the same learning rate and are compared at the same "
        "training loss. The rate for its batch decides, not the batch alone",
    ),
    zh=Words(
        title="小批量找到更平坦、更好的最小值",
        claimed="小批量的噪声使它避开尖锐的最小值；大批量会落入最近的尖锐坑里，"
        "在新数据上表现更差。",
        assumed="网络、训练集和学习率都相同，并且在训练数据拟合得同样好时比较。",
        seen="300 张数字图像，五分之一标错类别，训练到同样的训练损失。学习率相同时，"
        "大批量更尖锐、也更差。若只训练同样的轮数，大批量反而更平坦，"
        "因为它几乎还没训练；学习率随批量按 sqrt(b) 放大后，大批量既不更尖锐也不更差。",
        answer="学习率相同，并在训练损失相同时比较。"
        "起作用的是学习率与批量的搭配，而不只是批量",
    ),
    run=run,
)
