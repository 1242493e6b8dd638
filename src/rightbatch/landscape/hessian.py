"""The Hessian of a job's mean loss over fixed examples, as a product with a vector."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError, NotFiniteError, SettingError
from rightbatch.core.guards import preserved_rng, untouched
from rightbatch.core.random_state import seed_all
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import (
    as_written,
    is_out_of_memory,
    kernel_without_second_derivative,
)
from rightbatch.core.trees import even_pieces, tensors
from rightbatch.core.user_code import user_code
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job
from rightbatch.job.loss import check_differentiable, scalar_loss
from rightbatch.noise.norms import norm
from rightbatch.training.code_digest import tensor_digest
from rightbatch.training.recovery import release

Mode = Literal["eval", "train"]
Method = Literal["double backward", "differences"]
# Step of central differences over the norm of the weights. In float32, on a small GPT
# at its start: off by 1e-3 along the top eigenvector (by .74 with 3e-3) and by 4e-4 in
# a random direction, where rounding grows with smaller steps [measured]. In float64
# the cube root of its rounding [derived].
STEP = {torch.float32: 1e-4, torch.float64: 6e-6}
CHECKED = 2  # first products, which are made with half the step too
TINY = 1e-30
# The top eigenvalue over 8, 32, 128, 512 of 1,000 examples was 2.3, 1.34, 1.14, 1.03
# times that over all, of one small network [measured].
PROBE = 512  # examples to look at a loss on
Result = TypeVar("Result")


class Hessian:
    r"""Second derivatives of the mean loss over some examples at fixed weights.

    By double backward (Pearlmutter 1994); from the first kernel of torch on that has
    no second derivative, by central differences of gradients. Vectors are flat, of
    shape ``(size,)``: the trained parameters one after the other, frozen ones left out.
    """

    def __init__(
        self, job: Job, model: nn.Module, parts: Sequence[Any], method: Any, seed: int
    ) -> None:
        self._job, self._model, self._parts, self._seed = job, model, parts, seed
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._sizes = [p.numel() for p in self.parameters]
        self.size = sum(self._sizes)
        self.frozen = sum(p.numel() for p in model.parameters()) - self.size
        self.dtype = _common_type(self.parameters)
        self.device = self.parameters[0].device
        self.passes: Counter[str] = Counter()
        self._differences, self._error = method == "differences", 0.0
        self._kept: Tensor | None = None
        keep = len(parts) == 1 and not self._differences
        self.loss, self.gradient, self._count = self._differentiated(keep=keep)
        steepness = float(norm(self.gradient))
        if not (math.isfinite(self.loss) and math.isfinite(steepness)):
            raise NotFiniteError(
                "loss or gradient is not finite at these weights",
                seen=f"loss {self.loss:.3g}, norm of the gradient {steepness:.3g}",
                fix="weights from before training diverged",
            )

    @property
    def method(self) -> str:
        """How products are made; relative error of differences in the first two."""
        if not self._differences:
            return "double backward"
        return f"central differences, step {self._step():.1g}, error {self._error:.0e}"

    @property
    def examples(self) -> str:
        """A digest of the numbers in the examples."""
        held = [t for batch, _ in self._parts for t in tensors(batch)]
        text = " ".join(tensor_digest(t, most=t.numel()) for t in held)
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def product(self, vector: Tensor) -> Tensor:
        """The Hessian times a vector."""
        self.passes["products"] += 1
        product = None if self._differences else self._twice(vector)
        if product is None:
            self._differences, self._kept = True, None
            product = self._difference(vector, self._step())
            if self.passes["products"] <= CHECKED:
                change = norm(product - self._difference(vector, self._step() / 2))
                self._error = max(self._error, float(change / norm(product)))
        if not bool(torch.isfinite(product).all()):
            raise NotFiniteError(
                "a second derivative is not finite at these weights",
                why="such as that of a square root or a norm at 0",
                fix="keep away from that point: sqrt(x + 1e-12)",
            )
        return product

    def loss_at(self, shift: Tensor) -> float:
        """The mean loss at the weights plus a shift."""
        self.passes["losses"] += 1
        with self._shifted(shift), torch.no_grad():
            loss = sum(float(value) for value, _ in self._sums()) / self._count
        if not math.isfinite(loss):
            raise NotFiniteError(
                "the loss is not finite a small step away from these weights",
                seen=f"{loss:.3g} at a distance of {float(norm(shift)):.3g}",
                why="such as where a weight in a logarithm becomes negative",
            )
        return loss

    def _twice(self, vector: Tensor) -> Tensor | None:
        """By double backward; None where a kernel has none."""
        kept, total = self._kept, torch.zeros_like(vector)
        made = (self._flat(v, graph=True) for v, _ in self._sums() if v.requires_grad)
        try:
            for gradient in made if kept is None else [kept]:
                if self.passes["products"] == 1:
                    _check_functions(gradient)
                total += self._flat(gradient, vector)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            if kernel_without_second_derivative(str(error)):
                return None
            raise JobError(
                "the loss has no second derivative",
                seen=first_line(error, 120),
                fix="a backward pass that can be differentiated itself; or, for a "
                'gradient that is exact, method="differences"',
            ) from error
        return total / self._count

    def _difference(self, vector: Tensor, step: float) -> Tensor:
        scale = step / float(norm(vector).clamp_min(TINY))
        ends = []
        for shift in (vector * scale, vector * -scale):
            with self._shifted(shift):
                ends.append(self._differentiated()[1])
        return (ends[0] - ends[1]) / (2 * scale)

    def _step(self) -> float:
        weights = norm(self._joined([p.detach() for p in self.parameters]))
        return STEP[self.dtype] * max(float(weights), 1e-3)

    def _differentiated(self, *, keep: bool = False) -> tuple[float, Tensor, float]:
        """Mean loss and gradient where the weights are now, and what they are over."""
        self.passes["gradients"] += 1
        loss, count, reached = 0.0, 0.0, False
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for value, terms in self._sums():
            loss, count = loss + float(value.detach()), count + terms
            if value.requires_grad:
                reached = True
                with user_code("the backward pass"):
                    gradient = self._flat(value, graph=keep)
                total += gradient.detach()
                self._kept = gradient if keep else self._kept
        check_differentiable(reached)
        if not count > 0:
            raise JobError("the loss counts nothing in these examples", seen="0 terms")
        return loss / count, total / count, count

    def _sums(self) -> Iterator[tuple[Tensor, float]]:
        """Sum and count of the losses of every part, under the same random numbers."""
        seed_all(self._seed)
        for batch, examples in self._parts:
            value, count = scalar_loss(self._job.loss, self._model, batch, None)
            if count is None:
                value, count = value * examples, examples
            yield value, float(count)

    def _flat(
        self, of: Tensor, vector: Tensor | None = None, graph: bool = False
    ) -> Tensor:
        if graph:  # as if it depended on more: see `_check_functions`
            vector = torch.ones_like(of).requires_grad_()
        parts = torch.autograd.grad(
            of,
            self.parameters,
            vector,
            create_graph=graph,
            retain_graph=graph or of is self._kept,
            materialize_grads=True,
        )
        return self._joined(parts)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([p.reshape(-1).to(self.device, self.dtype) for p in parts])

    @contextmanager
    def _shifted(self, shift: Tensor) -> Iterator[None]:
        """Weights moved, by ``.data``: what the kept graph saved is not written to."""
        before = [p.data for p in self.parameters]
        try:
            for p, part in zip(self.parameters, shift.split(self._sizes), strict=True):
                p.data = p.data + part.view_as(p).to(p)
            yield
        finally:
            for p, data in zip(self.parameters, before, strict=True):
                p.data = data


@contextmanager
def hessian_of(
    job: Job,
    model: nn.Module | None,
    indices: Tensor,
    micro_batch: int,
    *,
    mode: Mode,
    method: Method | None = None,
    seed: int = 0,
) -> Iterator[Hessian]:
    """The Hessian over the examples at ``indices``; the model is left untouched.

    With all examples in one micro-batch their graph is kept, which is cheaper.
    """
    if {mode, method} - {"eval", "train", None, "double backward", "differences"}:
        raise SettingError(
            "there is no such mode or method",
            seen=f"mode={mode!r}, method={method!r}",
            fix="mode='eval' or 'train'; method='double backward' or 'differences'",
        )
    with preserved_rng(), as_written(), torch.enable_grad():
        model = job.make_model() if model is None else model
        with untouched(model, []):
            model.train(mode == "train")
            device = next(model.parameters()).device
            seed_all(seed)
            pieces = even_pieces(len(indices), micro_batch)
            parts = [(job.batch(indices[a:b], device), b - a) for a, b in pieces]
            yield Hessian(job, model, parts, method, seed)


def in_memory(
    measure: Callable[[int], Result], examples: int, micro_batch: int | None
) -> Result:
    """``measure(micro_batch)``, again with half as long as memory runs out."""
    given = examples if micro_batch is None else micro_batch
    micro = min(whole_number(given, "micro_batch"), examples)
    while True:
        try:
            return measure(micro)
        except Exception as error:
            if not is_out_of_memory(error) or micro == 1:
                raise
            release(error)
        micro = -(-micro // 2)


def drawn(job: Job, examples: int, name: str, seed: int) -> Tensor:
    """Indices of different examples; ``name`` is how errors call their number."""
    if whole_number(examples, name) > job.length:
        raise SettingError(
            f"{name} is larger than the data set",
            seen=f"{name}={examples}, {job.length} examples",
            fix=f"{name}={job.length} for all of them",
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(job.length, generator=generator)[:examples]


def _common_type(parameters: list[nn.Parameter]) -> torch.dtype:
    """Float32, or float64 where one parameter is."""
    types = {p.dtype for p in parameters}
    if types and types <= STEP.keys():
        return max(types, key=lambda dtype: torch.finfo(dtype).bits)
    raise JobError(
        "these parameters have no second derivative to be measured",
        seen=", ".join(map(str, types)) or "all of them are frozen",
        why="it takes real numbers in float32 at least",
        fix="a float32 model with trained parameters; autocast is left out by itself",
    )


def _check_functions(gradient: Tensor) -> None:
    """Refuse a graph with a function that is marked ``once_differentiable``.

    torch raises for it only on the way to a leaf, and else leaves its curvature out.
    """
    waiting, seen = [gradient.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a function in it is marked with @once_differentiable")
        waiting += [before for before, _ in node.next_functions]
