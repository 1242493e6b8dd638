"""LayerNorm and GroupNorm do not depend on the batch; GroupNorm does on lengths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.lab.check import at_least, at_most, equals
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import bars
from rightbatch.lab.touching.sequence_model import NORMS, StepByStep

FEATURES, LENGTH = 8, 12
ROUNDING = 1e-5  # of float32, relative, over the few layers here
FLOOR = 1e-9  # drawn where nothing moved at all: a logarithm has no zero


def moved(model: nn.Module, x: Tensor, other: Tensor, steps: int) -> float:
    """How far the first example's first steps move, over their root mean square.

    Args:
        model: In the mode it is in.
        x: The example alone, shape (1, steps, features).
        other: A batch that begins with it, neighbours, padding or later steps changed.
        steps: Watched.
    """
    before, after = model(x)[0, :steps], model(other)[0, :steps]
    return float((after - before).abs().max() / before.square().mean().sqrt())


def neighbours(x: Tensor, size: int) -> Tensor:
    """The example among others, in a batch of this size."""
    return torch.cat([x, torch.randn(size - 1, LENGTH, FEATURES)])


def padded(x: Tensor, length: int) -> Tensor:
    """The example with zeros behind it."""
    return nn.functional.pad(x, (0, 0, 0, length - LENGTH))


def other_end(x: Tensor, steps: int) -> Tensor:
    """The example with other numbers from a step on."""
    return torch.cat([x[:, :steps], torch.randn(1, LENGTH - steps, FEATURES)], 1)


Change = tuple[Callable[[Tensor, int], Tensor], tuple[int, ...]]
CHANGES: dict[str, Change] = {
    "neighbours": (neighbours, (2, 3, 8, 64)),
    "padding": (padded, (13, 24, 48)),
    "later steps": (other_end, (3, 6, 11)),
}


@torch.no_grad()
def largest(norm: str, change: str, *, draws: int) -> float:
    """The largest movement by a kind of change, over sizes and models."""
    make, sizes = CHANGES[change]
    most = 0.0
    for _ in range(draws):
        model, x = StepByStep(norm, FEATURES), torch.randn(1, LENGTH, FEATURES)
        for size in sizes:
            watched = size if change == "later steps" else LENGTH
            most = max(most, moved(model, x, make(x, size), watched))
    return most


def run(trial: Trial) -> Seen:
    """Change neighbours, padding and later steps under three norms."""
    torch.manual_seed(trial.seed)
    draws = trial.size(20, 200)
    seen = {(n, c): largest(n, c, draws=draws) for n in NORMS for c in CHANGES}
    batch = torch.randn(8, LENGTH, FEATURES)
    leaking = {
        norm: [
            leak.across
            for leak in rb.coupling.leaks(
                StepByStep(norm, FEATURES), batch, time_axis=1
            )
        ]
        for norm in NORMS
    }
    apart = [
        at_most(
            f"output moved by {change}, {norm}",
            ROUNDING,
            seen[norm, change],
            wrong={"BatchNorm": seen["BatchNorm", change]},
        )
        for norm, change in (
            ("LayerNorm", "neighbours"),
            ("GroupNorm", "neighbours"),
            ("LayerNorm", "padding"),
            ("LayerNorm", "later steps"),
        )
    ]
    checks = (
        *apart,
        at_most(
            "leaks between examples that leaks() finds, LayerNorm and GroupNorm",
            0,
            sum(leaking[n].count("examples") for n in ("LayerNorm", "GroupNorm")),
            wrong={"BatchNorm": leaking["BatchNorm"].count("examples")},
        ),
        at_least(
            "output moved by padding, GroupNorm over time",
            0.01,
            seen["GroupNorm", "padding"],
            part="limit",
            wrong={"LayerNorm": seen["LayerNorm", "padding"]},
        ),
        equals(
            "leaks from later steps, GroupNorm over time",
            1,
            leaking["GroupNorm"].count("time"),
            part="limit",
            wrong={"LayerNorm": leaking["LayerNorm"].count("time")},
        ),
    )
    shown = {f"{n}: {c}": max(v, FLOOR) for (n, c), v in seen.items()}
    return Seen(
        checks,
        (
            Chart(
                "How far an example's output moves when only what is around it "
                "changes; 1e-9 stands for not at all.",
                "只改变周围的东西时，一个样本的输出移动多少；1e-9 表示完全没有移动。",
                bars(shown, "largest relative change of the output", log=True),
            ),
        ),
    )


CLAIM = Claim(
    id="layer-norm-alone",
    texts=(
        "4 独立的自由：为后批量时代而设计: LN is self-contained, independent of the "
        "batch and of the rest of the sequence",
        "4 独立的自由：为后批量时代而设计: GN is per example, hence batch-independent",
        "4 独立的自由：为后批量时代而设计: with other lengths BN statistics change",
    ),
    papers=(
        "Ba, Kiros, Hinton 2016, arXiv:1607.06450",
        "Wu, He 2018, arXiv:1803.08494",
    ),
    theory="d output_i / d input_j = 0 for every other example j",
    verdict="holds if",
    seconds=1,
    power="20 models, each changed in ten ways: exact but for rounding; 200 with --full",
    en=Words(
        title="LayerNorm and GroupNorm leave an example alone",
        claimed="Both normalise inside one example, so its output does not depend on "
        "the batch; LayerNorm inside one step, so not on the sequence either.",
        assumed="LayerNorm over the channels of a step; GroupNorm over some channels "
        "of all positions of an example, as it is defined.",
        seen="One example is put into batches of many sizes, padded to many lengths, "
        "and given another end. BatchNorm moves every time, LayerNorm never. GroupNorm "
        "does not feel its neighbours, but it does feel padding and later steps.",
        answer="sequences are kept to LayerNorm: over time GroupNorm depends "
        "on the length and sees the future.",
    ),
    zh=Words(
        title="LayerNorm 与 GroupNorm 不打扰单个样本",
        claimed="两者都只在一个样本内部归一化，输出与批量无关；LayerNorm 只在一个时间步"
        "内部归一化，因此也与序列其余部分无关。",
        assumed="LayerNorm 跨一个时间步的通道；GroupNorm 按定义跨一个样本所有位置的"
        "若干通道。",
        seen="把同一个样本放进各种大小的批量、补齐到各种长度、换掉后半段。"
        "BatchNorm 每次都变，LayerNorm 从不变；GroupNorm 不受邻居影响，"
        "但受补齐和后续时间步影响。",
        answer="序列用 LayerNorm；沿时间的 GroupNorm 依赖长度，也会看到未来。",
    ),
    run=run,
)
