"""What a normalisation costs: time, memory kept and modelled energy, beside BatchNorm.

Time is CPU time of one forward and backward pass, a median over rounds in turns;
memory is what autograd keeps between the two. Energy is not measured: it is MODELLED as
``POWER_W`` times the time, so its ratios are those of time. ``touch`` is how far an
example's output moves, over its size, when the others of its batch are exchanged.

    python benchmarks/norms.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import rightbatch as rb
from results import write_json

POWER_W = 10.0  # of one busy CPU core, above idle [assumed; modelled, not measured]
SHAPES = [(64, 256), (4096, 256), (1024, 64), (128, 64, 14, 14), (64, 512, 4, 4)]
GROUP = 8
SMALL = (2, 4, 8, 32, 128)
KINDS: dict[str, dict[str, Any]] = {
    "sync": {},
    "ghost": {"group": GROUP},
    "frozen": {},
    "group": {},
    "layer": {},
}


class Loop(nn.Module):
    """Ghost batch norm as others write it: BatchNorm on one chunk after another."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """The chunks' outputs."""
        return torch.cat([self.norm(part) for part in x.split(GROUP)])


def layers(shape: tuple[int, ...]) -> dict[str, nn.Module]:
    """BatchNorm, and what it may be replaced by."""
    kind = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    plain = kind(shape[1])
    found: dict[str, nn.Module] = {"batch": plain}
    found |= {"ghost by a loop": Loop(copy.deepcopy(plain))}
    for to, arguments in KINDS.items():
        holder = nn.Sequential(copy.deepcopy(plain))
        rb.coupling.convert_norms(holder, to, **arguments)  # pyrefly: ignore
        (found[to],) = holder
    return found


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """What autograd keeps for the backward pass, the input among it."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    del y
    return sum(kept.values())


def once(layer: nn.Module, x: Tensor, dy: Tensor) -> float:
    """CPU seconds of one forward and backward pass."""
    started = time.process_time()
    layer(x).backward(dy)
    x.grad = None
    return time.process_time() - started


def costs(shape: tuple[int, ...], rounds: int) -> dict[str, dict[str, float]]:
    """Of each layer, over BatchNorm's."""
    torch.manual_seed(0)
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
    found = layers(shape)
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 2):
        for name, layer in found.items():
            seconds = once(layer, x, dy)
            if turn > 1:
                times[name].append(seconds)
    base = statistics.median(times["batch"])
    base_bytes = kept_bytes(found["batch"], x)
    return {
        name: {
            "ms": statistics.median(times[name]) * 1e3,
            "time": statistics.median(times[name]) / base,
            "memory": kept_bytes(layer, x) / base_bytes,
            "modelled_mJ": statistics.median(times[name]) * POWER_W * 1e3,
        }
        for name, layer in found.items()
    }


def touch(examples: int) -> dict[str, float]:
    """How much of an example's output is the other examples', by the batch size."""
    found = {}
    for name, layer in layers((examples, 64)).items():
        moved = []
        for seed in range(20):
            x = torch.randn(examples, 64, generator=torch.Generator().manual_seed(seed))
            other = torch.randn_like(x)
            other[0] = x[0]
            with torch.no_grad():
                y, z = layer(x)[0], layer(other)[0]
            moved.append(float((y - z).norm() / y.norm()))
        found[name] = statistics.median(moved)
    return found


def main() -> None:
    """Print the tables, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    report: dict[str, Any] = {"power_w_assumed": POWER_W, "group": GROUP, "costs": {}}
    for shape in SHAPES:
        found = report["costs"][str(shape)] = costs(shape, options.rounds)
        print(f"\n{shape}: over BatchNorm   ({POWER_W:g} W assumed)")
        for name, figures in found.items():
            print(
                f"  {name:16} time {figures['time']:5.2f} x  memory "
                f"{figures['memory']:5.2f} x  modelled {figures['modelled_mJ']:8.3f} mJ"
            )
    print("\ntouch, by examples in the batch")
    report["touch"] = {str(examples): touch(examples) for examples in SMALL}
    for examples, values in report["touch"].items():
        row = "  ".join(f"{name} {value:.2f}" for name, value in values.items())
        print(f"  {examples:>4}: {row}")
    write_json("norms", report)


if __name__ == "__main__":
    main()
