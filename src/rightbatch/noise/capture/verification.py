"""Whether every group's gradient, as seen inside a pass, is that of a pass of its own.

A random gradient is sent back from the model's outputs, from one group's examples after
the other, through torch's own graph. What arrives at a parameter is that group's true
gradient. What the formulas make of the same pass must be the same, entry by entry, and
nothing of it may be seen in another group. So neither shapes nor names have to be
trusted: where the examples lie is read off from where a group's gradient passes, and
all of it is compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rightbatch.core.trees import tensors
from rightbatch.noise.capture.function_mode import UNKNOWN, CaptureMode, Site
from rightbatch.noise.capture.group_norms import GroupNorms, ParameterKey
from rightbatch.noise.capture.layout import Axis, Groups, Layout, possible_axes
from rightbatch.noise.capture.plan import Place
from rightbatch.noise.norms import norm

MOST_PASSES = 32  # groups that get a pass of their own; more examples share [assumed]
TRIES = 3  # of a pass: shared parameters are found in the first [assumed]
TOUCHING = 0.01  # share of a gradient that is no rounding [assumed]
ELSEWHERE = "{:.0%} of an example's gradient is seen elsewhere"
OTHER = "its gradient as seen differs from the true one by {:.1g} of it"
ZERO = "its gradient is zero at these weights: nothing to verify"
OUTSIDE = "no output that has the examples depends on it"
SPARSE = "its gradient is sparse"


@dataclass
class Verdict:
    """What was found.

    Attributes:
        problem: Why nothing can be verified at all; "" if it can.
        relearn: Whether another step may confirm more: something was found out that
            only the next forward pass can use.
        zero: Whether some gradients are zero at these weights: later there may be
            something to verify.
    """

    problem: str = ""
    relearn: bool = False
    zero: bool = False


@dataclass
class _Output:
    """One of the model's outputs, and where its examples lie."""

    tensor: Tensor
    axes: tuple[Axis, ...]
    values: Tensor  # the gradient that is sent back


@dataclass
class _Shares:
    """How much of one group's gradient lies outside of it, for every way to see it."""

    batch: int
    first: int  # examples of the group
    outside: dict[Place, dict[Axis, float]] = field(default_factory=dict)
    certain: set[Place] = field(default_factory=set)

    def arrived(self, site: Site, grads: Sequence[Tensor | None]) -> None:
        """Note the shares at one call."""
        shares = self.outside.setdefault(site.place, {})
        for g, axes in zip(grads, site.axes, strict=True):
            if g is None or not (total := float(norm(g))):
                continue
            for axis in axes:
                rest = Layout(self.batch, axis).split(g)[self.first :]
                shares[axis] = max(shares.get(axis, 0.0), float(norm(rest)) / total)
        if site.certain:
            self.certain.add(site.place)

    @property
    def astray(self) -> float | None:
        """The most that is outside where it is certain what is; None: nowhere."""
        sure = [s for place in self.certain if (s := self.outside[place])]
        return max((min(s.values()) for s in sure), default=None)


@dataclass
class _GroupPass:
    """What the formulas make of one group's pass."""

    mode: CaptureMode
    norms: GroupNorms
    entries: dict[ParameterKey, Tensor] = field(default_factory=dict)
    precision: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def arrived(self, site: Site, grads: Sequence[Tensor | None]) -> None:
        """Make the gradients of one call."""
        for use, gradient in self.mode.note(site, grads, self.norms):
            entries = use.formula.entries(gradient).reshape(-1)
            before = self.entries.get(use.key)
            self.entries[use.key] = entries if before is None else before + entries
            index, parameter = use.key.index, use.tracked.tensor
            eps = max(precision(t) for t in (*grads, parameter) if t is not None)
            self.precision[index] = max(self.precision[index], eps)


def verify(mode: CaptureMode, outputs: Sequence[Any]) -> Verdict:
    """Confirm or refuse every parameter in the mode's plan.

    Args:
        mode: Of the step's forward passes just made.
        outputs: What the model returned in each of them.
    """
    verification = _Verification(mode)
    try:
        return verification.run(outputs)
    finally:
        mode.inspector = None


class _Verification:
    def __init__(self, mode: CaptureMode) -> None:
        self.mode, self.plan = mode, mode.plan
        self.batch = mode.group_norms.batch
        self.groups = Groups.of(self.batch, min(mode.group_norms.count, MOST_PASSES))
        # Numbers of our own: the training's random stream goes on untouched.
        self.generator = torch.Generator().manual_seed(0)

    def run(self, outputs: Sequence[Any]) -> Verdict:
        given, found = [], []
        for tensor in {id(t): t for t in tensors(list(outputs))}.values():
            if not (tensor.requires_grad and tensor.is_floating_point()):
                continue
            given.append(tuple(tensor.shape))
            if axes := possible_axes(tensor, self.batch, features=False):
                values = torch.randn(tensor.shape, generator=self.generator)
                values = values.to(tensor.device, tensor.dtype)
                found.append(_Output(tensor, axes, values))
        if not found:
            shapes = ", ".join(str(s) for s in given[:3]) or "nothing to train on"
            return Verdict(
                f"no output has the {self.batch} examples of the first input on its "
                f"first or second axis (outputs: {shapes})"
            )
        known = []
        for output in found:
            if (axis := self._axis(output)) is not None:
                known.append(_Output(output.tensor, (axis,), output.values))
        if not known:
            return Verdict(
                f"more than one axis of the output {tuple(found[0].tensor.shape)} may "
                f"have the {self.batch} examples, and nothing tells which"
            )
        shares = self._shares(known)
        if (astray := shares.astray) is not None and astray > TOUCHING:
            return Verdict(
                f"examples touch each other inside the model: {astray**2:.0%} of one's "
                "gradient passes through others"
            )
        verdict = Verdict(relearn=self._choose(shares))
        self._compare(known, verdict)
        return verdict

    def _axis(self, output: _Output) -> Axis | None:
        """Where an output has the examples: where all that is certain agrees."""
        if len(output.axes) == 1:
            return output.axes[0]
        hold = []
        for axis in output.axes:
            tried = _Output(output.tensor, (axis,), output.values)
            astray = self._shares([tried]).astray
            if astray is not None and astray <= TOUCHING:
                hold.append(axis)
        return hold[0] if len(hold) == 1 else None

    def _shares(self, outputs: list[_Output]) -> _Shares:
        shares = _Shares(self.batch, self.groups.sizes[0])
        self.mode.inspector = shares
        self._send(outputs, 0)
        return shares

    def _send(self, outputs: list[_Output], group: int) -> list[Tensor | None]:
        """One group's true gradients, by parameter; nothing is added to ``.grad``."""
        a, b = self.groups.slices[group]
        sent = []
        for output in outputs:
            gradient = torch.zeros_like(output.tensor)
            layout = Layout(self.batch, output.axes[0])
            layout.split(gradient)[a:b] = layout.split(output.values)[a:b]
            sent.append(gradient)
        parameters = self.mode.parameters
        wanted = [p for p in parameters if p.requires_grad]
        ends = [o.tensor for o in outputs]
        made = torch.autograd.grad(
            ends, wanted, sent, retain_graph=True, allow_unused=True
        )
        by_id = {id(p): g for p, g in zip(wanted, made, strict=True)}
        return [by_id.get(id(p)) for p in parameters]

    def _choose(self, shares: _Shares) -> bool:
        """Where the examples lie at every call; whether a table has none."""
        routes, relearn = self.plan.routes, False
        for site in list(self.mode.sites):
            if not site.place.keys:
                continue
            if site.rerun is not None:
                routes[site.place] = "again"
                continue
            found = shares.outside.get(site.place)
            if not found:
                routes.setdefault(site.place, "none")
                continue
            axis = min(found, key=lambda a: found[a])
            routes[site.place] = axis
            # Positions, say: as many as there are examples, or a multiple of them.
            table = site.place.name == "embedding" and not site.certain
            if table and found[axis] > TOUCHING:
                routes[site.place], relearn = "rows", True
        return relearn

    def _compare(self, outputs: list[_Output], verdict: Verdict) -> None:
        mode, plan, parameters = self.mode, self.plan, self.mode.parameters
        reached: set[int] = set()
        zero: set[int] = set()
        refused = dict(plan.barred)
        for group in range(self.groups.count):
            truth, seen = self._group_pass(outputs, group)
            scale = max((float(norm(g)) for g in truth if g is not None), default=0.0)
            for index, gradient in enumerate(truth):
                if gradient is None or index in refused:
                    continue
                if gradient.is_sparse:
                    refused[index] = SPARSE
                    continue
                size = float(norm(gradient))
                (reached if size else zero).add(index)
                why = self._difference(index, gradient, size, scale, group, seen)
                if why:
                    refused[index] = why
        confirmed = reached - set(refused)
        lost = mode.group_norms.guard.lost
        refused |= {i: why for i, why in lost.items() if isinstance(i, int)}
        for index in range(len(parameters)):
            if index in refused or index in confirmed:
                continue
            if index in zero:
                refused[index] = ZERO
            else:
                refused[index] = OUTSIDE
        # What took no part this time stays as it was.
        absent = {i for i, why in refused.items() if why in (ZERO, OUTSIDE)}
        plan.confirmed = confirmed | (plan.confirmed & absent)
        plan.refused = {i: w for i, w in refused.items() if i not in plan.confirmed}
        verdict.zero = bool(zero - reached)

    def _group_pass(
        self, outputs: list[_Output], group: int
    ) -> tuple[list[Tensor | None], _GroupPass]:
        shared, tries = self.mode.group_norms.shared, 0
        while True:
            norms = GroupNorms(
                self.batch,
                self.groups.count,
                shared,
                same_groups=True,
                guard=self.mode.group_norms.guard,
            )
            self.mode.inspector = seen = _GroupPass(self.mode, norms)
            truth = self._send(outputs, group)
            norms.close()
            tries += 1
            if not norms.newly_shared or tries == TRIES:
                return truth, seen
            shared |= norms.newly_shared

    def _difference(
        self,
        index: int,
        truth: Tensor,
        size: float,
        scale: float,
        group: int,
        seen: _GroupPass,
    ) -> str:
        """Why a parameter is not seen as it should be; "" if it is."""
        parameter = self.mode.parameters[index]
        eps = max(precision(parameter), seen.precision[index])
        allowed = tolerance(eps) * size + 4 * eps * scale
        squares = [s for key, s in seen.norms.squares.items() if key.index == index]
        if index in self.mode.departed or not squares:
            return UNKNOWN if size > allowed else ""
        sums = torch.stack(squares).double().sum(0)
        inside = float(sums[group].clamp(min=0).sqrt())
        outside = float((sums.sum() - sums[group]).clamp(min=0).sqrt())
        if outside > allowed:
            share = outside**2 / (outside**2 + inside**2)
            return ELSEWHERE.format(share)
        difference = abs(inside - size)
        for key, entries in seen.entries.items():
            if key.index == index:
                expected = _part(truth, key)
                if expected is not None:
                    # A sum of its own: what is not finite is not equal.
                    apart = float(norm(_double(entries) - _double(expected)))
                    difference = max(difference, apart)
        if difference <= allowed:
            return ""
        return OTHER.format(difference / max(size, allowed))


def _part(gradient: Tensor, key: ParameterKey) -> Tensor | None:
    """The entries of a gradient that a key stands for, if that can be said."""
    if not key.part:
        return gradient.reshape(-1)
    if len(key.part) % 2 == 0:
        return None  # a view of a copy of a view
    offset, *axes = key.part
    return gradient.contiguous().as_strided(axes[::2], axes[1::2], offset).reshape(-1)


def precision(tensor: Tensor) -> float:
    """The relative rounding error of one number in products like this one."""
    eps = torch.finfo(tensor.dtype).eps
    if tensor.dtype == torch.float32 and tensor.is_cuda:
        tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        return 2.0**-10 if tf32 else eps
    return eps


def tolerance(eps: float) -> float:
    """The relative error that sums of many such products may have.

    Half precision is summed in single: its own rounding counts once or twice.
    """
    single = torch.finfo(torch.float32).eps
    return 8 * eps + 256 * min(eps, single)


def _double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
