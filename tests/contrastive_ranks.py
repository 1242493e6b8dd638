"""On every rank by test_gather.py: gradients against one process with the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

import rightbatch as rb
from rightbatch.coupling.gather import Group

EXAMPLES, WIDTH = 26, 12  # over four ranks: 5, 6, 7, 8
LENGTHS = [1 + 7 * i % 9 for i in range(EXAMPLES)]


class Towers(nn.Module):
    """Two encoders of padded sequences and what the losses learn."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.images = nn.Linear(WIDTH, 8)
        self.texts = nn.Linear(WIDTH, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.to(dtype)

    def forward(self, batch: dict[str, Tensor], tower: str = "images") -> Tensor:
        kept = torch.arange(batch["x"].shape[1]) < batch["length"][:, None]
        encoded = getattr(self, tower)(batch["x"]).tanh() * kept[:, :, None]
        return normalize(encoded.sum(1), dim=1)


def batch_of(start: int, stop: int, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Both inputs of these examples."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(2, EXAMPLES, 9, WIDTH, generator=generator, dtype=dtype)
    length = torch.tensor(LENGTHS)[start:stop]
    return [
        {"x": x[start:stop], "length": length} for x in (drawn[0], drawn[0] + drawn[1])
    ]


def losses(towers: Towers, group: Group) -> dict[str, Callable[..., Tensor]]:
    """All of ours, with what they learn."""
    c, own = rb.coupling, {"process_group": group}
    return {
        "two-sided": lambda a, b: c.info_nce(
            a, b, scale=towers.logit_scale.exp() + 0 * towers.bias, **own
        ),
        "one-sided": lambda a, b: c.info_nce(
            a, b, scale=towers.logit_scale.exp(), two_sided=False, **own
        ),
        "more negatives": lambda a, b: c.info_nce(
            a, torch.cat([b, a.flip(0)[1:]]), scale=towers.logit_scale.exp(), **own
        ),
        "wide": lambda a, b: c.info_nce(
            a, b, scale=towers.logit_scale.exp() * 200, **own
        ),
        "views": lambda a, b: c.nt_xent(
            a, b, temperature=(-towers.logit_scale).exp(), **own
        ),
        "views, one-sided": lambda a, b: c.nt_xent(
            a, b, temperature=(-towers.logit_scale).exp(), two_sided=False, **own
        ),
        "siglip": lambda a, b: c.siglip(
            a, b, scale=towers.logit_scale.exp(), bias=towers.bias, **own
        ),
    }


def gradient(towers: Towers) -> Tensor:
    """All parameters', taken off."""
    zeros = (
        torch.zeros_like(p) if p.grad is None else p.grad for p in towers.parameters()
    )
    flat = torch.cat([g.flatten() for g in zeros]).double()
    towers.zero_grad()
    return flat


def parts_of(rank: int, world: int) -> tuple[int, int]:
    """Where a rank's examples are: no two ranks have as many."""
    if world == 1:
        return 0, EXAMPLES
    sizes = {2: [9, 17], 4: [5, 6, 7, 8]}[world]
    return sum(sizes[:rank]), sum(sizes[: rank + 1])


def whole(name: str, dtype: torch.dtype) -> tuple[float, Tensor]:
    """One process with everything, which asks no other."""
    towers = Towers(dtype)
    a, b = batch_of(0, EXAMPLES, dtype)
    if name == "more negatives":  # each rank's own, in the order of ranks
        features = towers(a), towers(b, "texts")
        world = dist.get_world_size()
        bounds = [parts_of(rank, world) for rank in range(world)]
        extra = [features[0][i:j].flip(0)[1:] for i, j in bounds]
        keys = torch.cat([features[1], *extra])
        scale = towers.logit_scale.exp()
        value = rb.coupling.info_nce(
            features[0], keys, scale=scale, process_group=False
        )
    else:
        value = losses(towers, False)[name](towers(a), towers(b, "texts"))
    value.backward()
    return float(value.detach()), gradient(towers)


class Whole(nn.Module):
    """Towers and loss in one forward pass, as DDP wants it."""

    def __init__(self, towers: Towers, name: str) -> None:
        super().__init__()
        self.towers, self.name = towers, name

    def forward(self, a: Any, b: Any) -> Tensor:
        loss = losses(self.towers, None)[self.name]
        return loss(self.towers(a), self.towers(b, "texts"))


def stepped(towers: Towers, kind: str, dtype: torch.dtype, loss: Any) -> Tensor:
    """The loss after a cached step of some kind, gradients left behind."""
    a, b = batch_of(*parts_of(dist.get_rank(), dist.get_world_size()), dtype)
    finding = "unused" in kind
    ddp = DistributedDataParallel(towers, find_unused_parameters=finding)
    parts: Any = [(ddp, a), (lambda batch: ddp(batch, "texts"), b)]
    for _ in range(2):  # the second meets what the first has left in DDP
        towers.zero_grad()
        if "tokens" in kind:
            lengths = [x["length"].tolist() for x in (a, b)]
            value = rb.coupling.cached_step(
                parts, loss, tokens=24, lengths=lengths, model=ddp
            )
        else:
            value = rb.coupling.cached_step(parts, loss, micro_batch=2, model=ddp)
    return value


def errors() -> list[Any]:
    """Every loss by DDP, and cached steps: how far off they are on each rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    found = {}
    for dtype in (torch.float32, torch.float64):
        for name in losses(Towers(dtype), None):
            towers = Towers(dtype)
            whole_step = Whole(towers, name)
            ddp = DistributedDataParallel(whole_step, find_unused_parameters=True)
            value = ddp(*batch_of(*parts_of(rank, world), dtype))
            value.backward()
            found[f"{name}, {dtype}"] = compared(name, towers, value, dtype)
        for kind in ("micro-batches", "tokens", "tokens, unused"):
            towers = Towers(dtype)
            value = stepped(towers, kind, dtype, losses(towers, None)["two-sided"])
            key = f"cached step by {kind}, {dtype}"
            found[key] = compared("two-sided", towers, value, dtype)
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, found)
    return everyone


def compared(
    name: str, towers: Towers, value: Tensor, dtype: torch.dtype
) -> dict[str, float]:
    """Relative errors of the loss and the gradient; and of the scale's alone."""
    at = [n for n, _ in towers.named_parameters()].index("logit_scale")
    sizes = [p.numel() for p in towers.parameters()]
    place = sum(sizes[:at])
    true_value, true = whole(name, dtype)
    mine = gradient(towers)
    return {
        "loss": abs(float(value.detach()) - true_value) / abs(true_value),
        "gradient": float((mine - true).norm() / true.norm()),
        "scale": float((mine - true)[place].abs() / true[place].abs()),
    }
