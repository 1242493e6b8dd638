"""The monitor on every layer, view, axis, tying, freezing and precision there is here.

Each case is a small model with one batch. The truth is one float64 pass for every
example alone. What the monitor says of the parameters it reports is held against it:
equal, declared (not reported, with a reason), wrong, or a crash of the step. The step's
own gradient is held against an unwatched one too.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rightbatch as rb
from results import write_json

D = 6  # features
TOLERANCE = {"float64": 1e-8, "float32": 2e-3, "bfloat16": 0.15}
STEPS = 5


@dataclass(frozen=True)
class Case:
    """A model, and where its batch lies.

    Attributes:
        name: What it is made of.
        model: A factory.
        inputs: All of the model's inputs.
        axes: Which axis of each input has the examples; None: it has none.
        out: Which axis of the output has them.
        dtype: Of parameters and inputs.
    """

    name: tuple[str, ...]
    model: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    axes: tuple[int | None, ...]
    out: int
    dtype: torch.dtype

    def alone(self, b: int) -> tuple[Tensor, ...]:
        """The inputs of one example."""
        return tuple(
            x if a is None else x.narrow(a, b, 1)
            for x, a in zip(self.inputs, self.axes, strict=True)
        )


def first(out: Any) -> Tensor:
    """The first tensor of an output."""
    return out if isinstance(out, Tensor) else first(out[0])


def loss_of(out: Any, axis: int) -> Tensor:
    """A mean over examples whose gradient differs from entry to entry."""
    out = first(out).movedim(axis, 0).flatten(1)
    weight = torch.linspace(0.1, 1, out.shape[1]).to(out)
    return ((out.sin() * weight).sum(1)).mean()


class Net(nn.Module):
    """A linear layer, something, and a linear layer."""

    def __init__(self, middle: nn.Module | None, use: Any = None) -> None:
        super().__init__()
        self.inner, self.middle = nn.Linear(D, D), middle
        self.outer = nn.Linear(D, D)
        self.p = nn.Parameter(torch.randn(D) / 2 + 1)
        self.w = nn.Parameter(torch.randn(D, D) / 3)
        self.wide = nn.Parameter(torch.randn(3 * D, D) / 3)
        self.use = use
        if use is None:
            del self.p, self.w, self.wide

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Shapes (..., D) to (..., D)."""
        x = self.inner(x).tanh()
        if self.use is not None:
            x = self.use(self, x, *more)
        elif self.middle is not None:
            x = first(self.middle(x, *more))
        return self.outer(x)


class Words(nn.Module):
    """Embeddings, positions and an output layer, tied or not."""

    def __init__(self, tied: str, places: str, rows: int, length: int) -> None:
        super().__init__()
        self.table, self.tied, self.at = nn.Embedding(rows, D), tied, places
        self.places = nn.Embedding(max(length, 2), D)
        self.mix = nn.Linear(D, D)
        self.head = nn.Linear(D, rows, bias=False)
        if tied != "free":
            self.head.weight = self.table.weight
        if places == "none":
            del self.places

    def forward(self, ids: Tensor) -> Tensor:
        """Shapes (batch, length) to (batch, length, rows)."""
        length = ids.shape[1]
        table = self.table(ids)
        if self.at == "row":
            table = table + self.places(torch.arange(length))
        if self.at == "matrix":
            table = table + self.places(torch.arange(length)[None])
        if self.at == "spread":
            table = table + self.places(torch.arange(length).expand_as(ids))
        x = self.mix(table).tanh()
        if self.tied == "turned":  # ids transposed inside
            x = x + self.table(ids.t()).transpose(0, 1)
        if self.tied == "twice":
            x = x + self.mix(self.table(ids.flip(1)))
        return self.head(x)


class Rotary(nn.Module):
    """Tables without examples beside the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(D, D), nn.Linear(D, 4)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Shapes (batch, length, D), and twice (length, D)."""
        h = self.q(x)
        turned = torch.cat([-h[..., D // 2 :], h[..., : D // 2]], -1)
        return self.o((h * cos + turned * sin).tanh())


class Seq(nn.Module):
    """A recurrent or attention layer with its own idea of axes."""

    def __init__(self, layer: nn.Module, attends: bool = False) -> None:
        super().__init__()
        self.layer, self.out, self.attends = layer, nn.Linear(D, D), attends

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (length, batch, D), or the batch first."""
        made = self.layer(x, x, x) if self.attends else self.layer(x)
        return self.out(first(made))


class Image(nn.Module):
    """Channels, a layer, a classifier."""

    def __init__(self, middle: nn.Module, axes: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.conv, self.middle = conv(2, 4, 3, padding=1), middle
        self.out = nn.LazyLinear(D)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (batch, 2, *sizes) to (batch, D)."""
        return self.out(self.middle(self.conv(x).tanh()).flatten(1))


VIEWS: dict[str, Any] = {
    "p": lambda m, x: x * m.p,
    "p + p": lambda m, x: x * m.p + m.p,
    "p[None]": lambda m, x: x + m.p[None],
    "p[None] and p": lambda m, x: x * m.p[None] + m.p,
    "p.unsqueeze(0)": lambda m, x: x * m.p.unsqueeze(0),
    "p.view(1, -1)": lambda m, x: x - m.p.view(1, -1),
    "p - x": lambda m, x: m.p - x,
    "x / p": lambda m, x: x / m.p,
    "exp(p)": lambda m, x: x * m.p.exp(),
    "p.double()": lambda m, x: x + m.p.double().to(x.dtype),
    "p.chunk": lambda m, x: torch.cat([x[..., :3] * m.p.chunk(2)[0], x[..., 3:]], -1),
    "p[:3], p[3:]": lambda m, x: torch.cat(
        [x[..., :3] * m.p[:3], x[..., 3:] + m.p[3:]], -1
    ),
    "p[:4], p[2:]": lambda m, x: (
        F.pad(x[..., :4] * m.p[:4], (0, 2)) + F.pad(x[..., 2:] * m.p[2:], (2, 0))
    ),
    "p[index]": lambda m, x: x * m.p[torch.arange(D).flip(0)],
    "softmax(p)": lambda m, x: x * m.p.softmax(0),
    "p.expand": lambda m, x: x + m.p.expand_as(x),
    "linear(w)": lambda m, x: F.linear(x, m.w),
    "x @ w": lambda m, x: x @ m.w,
    "x @ w.T": lambda m, x: x @ m.w.T,
    "x @ w.t() + w": lambda m, x: (x @ m.w.t()).tanh() @ m.w,
    "w twice": lambda m, x: F.linear(F.linear(x, m.w).tanh(), m.w),
    "w.T.contiguous()": lambda m, x: x @ m.w.T.contiguous(),
    "w.mT": lambda m, x: x @ m.w.mT,
    "w.float()": lambda m, x: F.linear(x, m.w.float().to(x.dtype)),
    "w.detach()": lambda m, x: F.linear(x, m.w.detach()) + F.linear(x, m.w),
    "w[:, :3]": lambda m, x: F.linear(x[..., :3], m.w[:, :3]),
    "w[:, :3], w[:, 3:]": lambda m, x: (
        F.linear(x[..., :3], m.w[:, :3]) + F.linear(x[..., 3:], m.w[:, 3:])
    ),
    "w[:4], w[2:]": lambda m, x: (
        F.pad(F.linear(x, m.w[:4]), (0, 2)) + F.pad(F.linear(x, m.w[2:]), (2, 0))
    ),
    "q, k, v": lambda m, x: (
        (F.linear(x, m.wide[:D]) * F.linear(x, m.wide[D : 2 * D])).tanh()
        + F.linear(x, m.wide[2 * D :])
    ),
    "q, k, v by chunk": lambda m, x: sum(
        F.linear(x, part).tanh() for part in m.wide.chunk(3)
    ),
    "q, k, v by unbind": lambda m, x: sum(
        F.linear(x, part) for part in m.wide.view(3, D, D).unbind(0)
    ),
    "q, k at once, q again": lambda m, x: (
        F.linear(x, m.wide[:D]) + F.linear(x, m.wide[: 2 * D]).sum(-1, keepdim=True)
    ),
    "einsum": lambda m, x: torch.einsum("...d,kd->...k", x, m.w),
    "-exp(w)": lambda m, x: x @ -torch.exp(m.w),
    "w + low rank": lambda m, x: F.linear(x, m.w + m.p[:, None] * m.p[None]),
    "w(p) + x": lambda m, x: x + F.linear(m.p, m.w),
    "prompt": lambda m, x: x + F.linear(m.wide, m.w).sum(0),
    "norm(w)": lambda m, x: F.linear(x, m.w / m.w.norm()),
    "mean over batch": lambda m, x: (x - x.mean(0)) * m.p,
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(D, D),
    "Linear, no bias": lambda: nn.Linear(D, D, bias=False),
    "LayerNorm": lambda: nn.LayerNorm(D),
    "RMSNorm": lambda: nn.RMSNorm(D),
    "PReLU": lambda: nn.PReLU(),
    "Identity": nn.Identity,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(D, D)),
    "Bottleneck": lambda: nn.Sequential(nn.Linear(D, 2), nn.GELU(), nn.Linear(2, D)),
    "inplace": lambda: nn.Sequential(nn.Linear(D, D), nn.ReLU(inplace=True)),
}
SEQUENCES: dict[str, Callable[[bool], nn.Module]] = {
    "RNN": lambda f: Seq(nn.RNN(D, D, batch_first=f)),
    "GRU": lambda f: Seq(nn.GRU(D, D, 2, batch_first=f)),
    "LSTM": lambda f: Seq(nn.LSTM(D, D, batch_first=f)),
    "LSTM, both ways": lambda f: Seq(
        nn.LSTM(D, D // 2, batch_first=f, bidirectional=True)
    ),
    "attention": lambda f: Seq(nn.MultiheadAttention(D, 2, batch_first=f), True),
    "encoder": lambda f: Seq(
        nn.TransformerEncoderLayer(D, 2, 8, dropout=0.0, batch_first=f)
    ),
}
IMAGES: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "conv1d": (1, lambda: nn.Conv1d(4, 3, 3)),
    "conv1d, stride, groups": (1, lambda: nn.Conv1d(4, 4, 2, 2, groups=2)),
    "conv2d": (2, lambda: nn.Conv2d(4, 3, 3)),
    "conv2d, same even": (2, lambda: nn.Conv2d(4, 3, 2, padding="same")),
    "conv2d, circular": (2, lambda: nn.Conv2d(4, 3, 3, 1, 1, padding_mode="circular")),
    "conv2d, depthwise": (2, lambda: nn.Conv2d(4, 4, 3, groups=4)),
    "conv3d": (3, lambda: nn.Conv3d(4, 2, 2)),
    "conv_transpose1d": (1, lambda: nn.ConvTranspose1d(4, 2, 2)),
    "conv_transpose2d": (2, lambda: nn.ConvTranspose2d(4, 2, 2)),
    "GroupNorm": (2, lambda: nn.GroupNorm(2, 4)),
    "InstanceNorm": (2, lambda: nn.InstanceNorm2d(4, affine=True)),
    "frozen BatchNorm": (2, lambda: nn.BatchNorm2d(4).eval()),
    "BatchNorm": (2, lambda: nn.BatchNorm2d(4)),
    "PReLU, channels": (2, lambda: nn.PReLU(4)),
}


def cases(dtypes: tuple[torch.dtype, ...]) -> Iterator[Case]:
    """All of them."""
    for dtype, batch in itertools.product(dtypes, (4, 6)):
        middles = {f"view {n}": (None, use) for n, use in VIEWS.items()}
        middles |= {f"layer {n}": (make, None) for n, make in LAYERS.items()}
        for (name, (make, use)), length, axis, frozen in itertools.product(
            middles.items(), (0, 3, batch, 2 * batch), (0, 1), ("", "inner", "bias")
        ):
            if axis and not length:
                continue
            shape = [batch, D] if not length else [batch, length, D]
            shape = shape if not axis else [length, batch, D]

            def model(make: Any = make, use: Any = use, frozen: str = frozen) -> Any:
                net = Net(make() if make else None, use)
                for n, p in net.named_parameters():
                    p.requires_grad_(not frozen or frozen not in n)
                return net

            what = (name, f"length {length}", f"axis {axis}", frozen or "free")
            x = torch.randn(shape) + torch.randn(1, D)
            yield Case(what, model, (x,), (axis,), axis, dtype)
        for tied, places, length in itertools.product(
            ("free", "tied", "turned", "twice"),
            ("none", "row", "matrix", "spread"),
            (3, batch, 2 * batch),
        ):
            rows = 7
            ids = torch.randint(rows, (batch, length))
            yield Case(
                ("words", tied, places, f"length {length}"),
                lambda t=tied, p=places, n=length: Words(t, p, 7, n),
                (ids,),
                (0,),
                0,
                dtype,
            )
        for name, length, axis in itertools.product(SEQUENCES, (3, batch), (0, 1)):
            shape = [batch, length, D] if not axis else [length, batch, D]
            yield Case(
                (name, f"length {length}", f"axis {axis}"),
                lambda n=name, a=axis: SEQUENCES[n](not a),
                (torch.randn(shape),),
                (axis,),
                axis,
                dtype,
            )
        for length in (3, batch, 2 * batch):
            tables = torch.rand(length, D), torch.rand(length, D)
            x = torch.randn(batch, length, D)
            yield Case(
                ("rotary", f"length {length}"),
                Rotary,
                (x, *tables),
                (0, None, None),
                0,
                dtype,
            )
        for name, (axes, make) in IMAGES.items():
            x = torch.randn(batch, 2, *[4] * axes)
            yield Case(
                ("image", name),
                lambda m=make, a=axes: Image(m(), a),
                (x,),
                (0,),
                0,
                dtype,
            )


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get gradients."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def verdict(case: Case) -> tuple[str, str]:
    """Equal, declared, wrong or crash; and what was seen."""
    torch.manual_seed(0)
    model = case.model()
    cast = [x.to(case.dtype) if x.is_floating_point() else x for x in case.inputs]
    case = Case(case.name, case.model, tuple(cast), case.axes, case.out, case.dtype)
    model = model.to(case.dtype)
    model(*case.inputs)  # lazy layers
    reference = copy.deepcopy(model).double()
    exact = Case(
        case.name,
        case.model,
        tuple(x.double() if x.is_floating_point() else x for x in case.inputs),
        case.axes,
        case.out,
        torch.float64,
    )
    batch = next(
        x.shape[a] for x, a in zip(case.inputs, case.axes, strict=True) if a is not None
    )
    model.zero_grad()
    plain = copy.deepcopy(model)
    loss_of(plain(*case.inputs), case.out).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = rb.NoiseMonitor(
        model, optimizer, math.inf, groups="examples", batch_axis=case.axes[0] or 0
    )
    try:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of(model(*case.inputs), case.out).backward()
            optimizer.step()
    except Exception as error:
        return "crash", f"{type(error).__name__}: {str(error)[:100]}"
    finally:
        monitor.close()
    allowed = TOLERANCE[str(case.dtype).removeprefix("torch.")]
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        if q.grad is not None and p.grad is not None:
            apart = float((p.grad.double() - q.grad.double()).norm())
            if apart > allowed * max(float(q.grad.double().norm()), 1e-3):
                return "crash", f"the step's gradient of {name} was changed"
    read = monitor.read(window=1)
    missing = read.coverage.missing
    if not read.steps:
        return "declared", read.problem[:100]
    wanted = [n for n in trained(reference) if n not in missing]
    parameters = [trained(reference)[n] for n in wanted]
    rows = []
    for b in range(batch):
        value = loss_of(reference(*exact.alone(b)), case.out)
        made = torch.autograd.grad(value, parameters, allow_unused=True)
        rows.append(
            torch.cat([_flat(g, p) for g, p in zip(made, parameters, strict=True)])
        )
    matrix = torch.stack(rows)
    trace = float((matrix - matrix.mean(0)).square().sum() / (batch - 1))
    signal = float(matrix.mean(0).square().sum()) - trace / batch
    scale = max(abs(trace), abs(signal))
    apart = max(abs(read.trace.value - trace), abs(read.grad_norm_sq.value - signal))
    if apart > allowed * scale or read.batch_size != batch:
        return "wrong", f"trace {read.trace.value:.6g} for {trace:.6g}"
    return ("part" if missing else "equal"), "; ".join(sorted(set(missing.values())))


def _flat(gradient: Tensor | None, p: Tensor) -> Tensor:
    return p.new_zeros(p.numel()) if gradient is None else gradient.flatten()


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="one case of so many")
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="say what is left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    counts: Counter[str] = Counter()
    bad: list[dict[str, str]] = []
    reasons: Counter[str] = Counter()
    for number, case in enumerate(cases(dtypes)):
        if number % options.every != options.offset:
            continue
        found, why = verdict(case)
        counts[found] += 1
        if found in ("wrong", "crash"):
            name = ", ".join((*case.name, str(case.dtype), f"B {case.inputs[0].shape}"))
            bad.append({"case": name, "found": found, "why": why})
            print(found, name, why, flush=True)
        elif why:
            reasons[why[:70]] += 1
            if options.all:
                print(found, ", ".join((*case.name, str(case.dtype))), why, flush=True)
    total = sum(counts.values())
    print(f"\n{total} cases")
    for found, count in counts.most_common():
        print(f"  {found:9} {count:5}  {count / total:6.1%}")
    for why, count in reasons.most_common(12):
        print(f"    {count:5}  {why}")
    write_json("noise-grid", {"counts": counts, "bad": bad, "reasons": reasons})


if __name__ == "__main__":
    main()
