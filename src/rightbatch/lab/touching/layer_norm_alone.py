"""LayerNorm and GroupNorm do not depend on the batch; GroupNorm does on lengths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch.lab.check import at_least, at_most
from rightbatch.lab.claim import Chart, Claim, Seen, Trial, Words
from rightbatch.lab.plots import bars
from rightbatch.lab.touching.sequence_model import NORMS, StepByStep

FEATURES, LENGTH = 8, 12
CHANGES = ("neighbours", "padding", "later steps")
SIZES = (1, 4, 11)  # neighbours, steps of padding, or later steps
ROUNDING = 1e-5  # of float32, relative, over the few layers here
FLOOR = 1e-9  # drawn where nothing moved at all: a logarithm has no zero


def moved(model: nn.Module, x: Tensor, other: Tensor, steps: int) -> float:
    """How far the first example's first steps move, over their root mean square."""
    before, after = model(x)[0, :steps], model(other)[0, :steps]
    return float((after - before).abs().max() / before.square().mean().sqrt())


def changed(x: Tensor, change: str, size: int) -> Tensor:
    """A batch that begins with the example x, (1, steps, features)."""
    if change == "neighbours":  # so many
        return torch.cat([x, torch.randn(size, LENGTH, FEATURES)])
    if change == "padding":  # so many steps
        return nn.functional.pad(x, (0, 0, 0, size))
    kept = LENGTH - size
    return torch.cat([x[:, :kept], torch.randn(1, size, FEATURES)], 1)


@torch.no_grad()
def largest(norm: str, change: str, *, draws: int) -> float:
    """The largest movement by a kind of change, over sizes and models."""
    most = 0.0
    for _ in range(draws):
        model, x = StepByStep(norm, FEATURES), torch.randn(1, LENGTH, FEATURES)
        for size in SIZES:
            watched = LENGTH - size if change == "later steps" else LENGTH
            most = max(most, moved(model, x, changed(x, change, size), watched))
    return most


def leaking_across(norm: str) -> list[str]:
    """What the leak search finds: "examples", "time"."""
    batch = torch.randn(8, LENGTH, FEATURES)
    leaks = rb.coupling.leaks(StepByStep(norm, FEATURES), batch, time_axis=1)
    return [leak.across for leak in leaks]


def run(trial: Trial) -> Seen:
    """Change neighbours, padding and later steps under three norms."""
    torch.manual_seed(trial.seed)
    draws = trial.size(20, 200)
    seen = {(n, c): largest(n, c, draws=draws) for n in NORMS for c in CHANGES}
    leaking = {norm: leaking_across(norm) for norm in NORMS}
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
        at_least(
            "leaks from later steps, GroupNorm over time",
            1,
            leaking["GroupNorm"].count("time"),
            part="limit",
            wrong={"LayerNorm": leaking["LayerNorm"].count("time")},
        ),
    )
    shown = {f"{n}: {c}": max(v, FLOOR) for (n, c), v in seen.items()}
    chart = Chart(
        "How far an output moves when only what is around it changes; 1e-9 stands for "
        "not at all.",
        "只改变周围的东西时，输出移动多少；1e-9 表示完全没有移动。",
        bars(shown, "relative change", log=True),
    )
    return Seen(checks, (chart,))


CLAIM = Claim(
    id="layer-norm-alone",
    texts=(
        "4 独立的自由：为后批量时代而设计: LN depends on nothing but its own token",
        "4 独立的自由：为后批量时代而设计: GN is per example, hence batch-independent",
    ),
    papers=("Ba et al. 2016, arXiv:1607.06450", "Wu, He 2018, arXiv:1803.08494"),
    theory="d output_i / d input_j = 0 for every other example j",
    verdict="holds if",
    seconds=1,
    power="20 models, nine changes of each: exact but for rounding; 200 with --full",
    en=Words(
        title="LayerNorm and GroupNorm leave an example alone",
        claimed="Both normalise inside one example, LayerNorm even inside one step: "
        "neighbours and lengths do not count.",
        assumed="LayerNorm over channels of a step, GroupNorm over some of all "
        "positions.",
        seen="One example gets neighbours, padding or another end. BatchNorm moves "
        "each time, LayerNorm never; GroupNorm does not feel neighbours, but it does "
        "feel padding and later steps.",
        answer="sequences are kept to LayerNorm: over time GroupNorm depends on the "
        "length and sees the future.",
    ),
    zh=Words(
        title="LayerNorm 与 GroupNorm 不打扰单个样本",
        claimed="两者都在样本内部归一化，LayerNorm 更只在一步之内：与邻居、长度无关。",
        assumed="LayerNorm 跨一步的通道；GroupNorm 跨所有位置的若干通道。",
        seen="给样本换邻居、补齐或换掉后半段。BatchNorm 每次都变，LayerNorm 不变；"
        "GroupNorm 不受邻居影响，但受补齐和后续时间步影响。",
        answer="序列用 LayerNorm；沿时间的 GroupNorm 依赖长度，也会看到未来。",
    ),
    run=run,
)
