"""The gradient of a loss over a whole batch whose encoders see it in chunks.

Features are made without a graph, chunk by chunk; the loss of all of them gives each
feature's gradient; each chunk is encoded again, with the same random numbers, and
that gradient goes back through it. The work of four forward passes, not three.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.guards import preserved_rng, set_buffers
from rightbatch.core.random_state import random_state, set_random_state
from rightbatch.core.torch_private import BatchNorm
from rightbatch.core.trees import slice_batch
from rightbatch.core.user_code import user_code
from rightbatch.coupling.chunks import Chunk, chunks_of_examples, chunks_of_tokens
from rightbatch.noise.rank_gradients import sharded_modules

Encoder = Callable[[Any], Tensor]
_Buffers = dict[str, Tensor]
# Of their norm, how far features may be from those beside fewer examples: kernels round
# by the size of the batch, up to 0.01 in bfloat16. [assumed]
TOUCHED = 0.02


def cached_step(
    parts: Sequence[tuple[Encoder, Any]],
    loss: Callable[..., Tensor],
    *,
    micro_batch: int | None = None,
    tokens: int | None = None,
    lengths: Sequence[Any] | None = None,
    model: nn.Module | None = None,
) -> Tensor:
    """Add the gradient of ``loss`` over the whole batch to ``.grad``, in chunks.

    In the place of ``loss(...).backward()``; dropout draws the same in both passes. An
    autocast context around the call holds for the encoders and the loss. Under DDP
    gradients are exchanged once, in the last pass of each wrapped model: all of its
    parameters, one that only the loss uses too.

    A first chunk of which no number is drawn is tried: half of it alone must have the
    same features. Under dropout that cannot be seen: try `leaks(encoder, batch)` first.

    Args:
        parts: Encoder and input batch, one for each argument of ``loss``: two towers,
            or one and the same twice. An encoder maps a batch of examples to a tensor
            with a row for each, which depends on this example only.
        loss: Of all features, in the batch's order: one number.
        micro_batch: Most examples that are encoded at once.
        tokens: Most tokens that are encoded at once, padding counted; a chunk is cut to
            its longest example, so the encoder must mask what is padding.
        lengths: With ``tokens``: for each part the tokens of its examples, or None
            where a part has no padding (it is cut by ``micro_batch``). Tensors are
            padded at the end of their second axis.
        model: Holds the parameters of encoders that are functions; wrapped in DDP, they
            must call the wrapper.

    Returns:
        The loss, without a graph.

    Raises:
        SettingError: An argument is missing, or the model is sharded.
        JobError: Examples of a chunk touch, a pass changes a buffer, or the second pass
            gives other features than the first: the gradient would be that of another
            function. Or the loss is not one number with a gradient.

    Example:
        >>> import torch, rightbatch as rb
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh())
        >>> images, texts = torch.randn(2, 100, 8)
        >>> def loss(queries, keys):
        ...     return rb.coupling.info_nce(queries, keys, scale=10.0)
        >>> parts = [(encoder, images), (encoder, texts)]
        >>> value = rb.coupling.cached_step(parts, loss, micro_batch=16)
        >>> bool(value > 0), encoder[0].weight.grad is not None
        (True, True)

    References:
        Gao et al. 2021, arXiv:2101.06983.
    """
    modules = _modules([encoder for encoder, _ in parts], model)
    _check_layers(modules)
    chunks = _chunks([batch for _, batch in parts], micro_batch, tokens, lengths)
    passes = [
        (number, chunk) for number, of_part in enumerate(chunks) for chunk in of_part
    ]
    device = next((p.device for m in modules for p in m.parameters()), None)
    device = torch.device("cpu") if device is None else device
    exchange = _Exchange(modules, [number for number, _ in passes])

    features: list[list[Tensor]] = [[] for _ in parts]
    states = []
    with exchange.in_pass(-1):
        buffers = [{n: b.clone() for n, b in m.named_buffers()} for m in modules]
        with torch.no_grad():
            for number, chunk in passes:
                states.append(random_state(device))
                features[number].append(_encoded(parts[number][0], chunk))
        _check_buffers(modules, buffers)
        torch.clear_autocast_cache()  # of weights that were cast without a graph
        whole = [_whole(f, c) for f, c in zip(features, chunks, strict=True)]
        with user_code("the loss"):
            value = loss(*whole)
        _check_loss(value)
        with torch.autocast(device.type, enabled=False):
            value.backward()
    gradients = [rows.grad for rows in whole]

    with preserved_rng():
        for turn, (number, chunk) in enumerate(passes):
            encoder, gradient = parts[number][0], gradients[number]
            if not any(p.requires_grad for p in modules[number].parameters()):
                continue  # frozen
            with exchange.in_pass(turn):
                set_random_state(states[turn], device)
                again = _encoded(encoder, chunk)
                if chunk is chunks[number][0]:
                    _check_same(again, features[number][0])
                    several = len(chunks[number]) > 1
                    if several and not _drawn(device, states[turn]):
                        _check_alone(encoder, chunk, again)
                rows = torch.zeros_like(again)
                if gradient is not None:  # the loss does not use it
                    rows = gradient[chunk.indices].to(again.dtype)
                others = exchange.others(turn)
                with torch.autocast(device.type, enabled=False):
                    roots = {again: rows} | {o: torch.zeros_like(o) for o in others}
                    roots = {t: g for t, g in roots.items() if t.requires_grad}
                    if roots:  # a function may call a frozen part of its model
                        torch.autograd.backward([*roots], [*roots.values()])
    return value.detach()


def _modules(encoders: Sequence[Encoder], model: nn.Module | None) -> list[nn.Module]:
    """What holds the parameters, for each encoder."""
    modules = []
    for encoder in encoders:
        holder = encoder if isinstance(encoder, nn.Module) else model
        if holder is None:
            raise SettingError(
                "an encoder is a function, and its model is not known",
                seen=repr(encoder)[:80],
                why="layers that touch several examples make the gradient wrong",
                fix="pass model=, the module that it calls",
            )
        if "torch.distributed.fsdp" in sys.modules and sharded_modules(holder):
            raise SettingError(
                "a sharded model cannot be stepped in chunks",
                seen="fully_shard",
                why="its ranks exchange in every pass, and may have other numbers of "
                "chunks",
                fix="DistributedDataParallel",
            )
        modules.append(holder)
    return modules


def _check_layers(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        for name, layer in module.named_modules():
            if isinstance(layer, BatchNorm) and layer.training:
                raise JobError(
                    "examples of a chunk touch each other: BatchNorm in training mode",
                    seen=f"{name or 'the encoder'}: {type(layer).__name__}",
                    why="it would normalize by each chunk, and not by the batch; the "
                    "gradient of a small network was 44 % off",
                    fix="GroupNorm or LayerNorm in its place, or the layer in eval "
                    "mode (frozen statistics)",
                )


def _chunks(
    batches: Sequence[Any],
    micro_batch: int | None,
    tokens: int | None,
    lengths: Sequence[Any] | None,
) -> list[list[Chunk]]:
    """The chunks of every part."""
    of_parts = [None] * len(batches) if lengths is None else list(lengths)
    if len(of_parts) != len(batches) or not batches:
        raise SettingError(
            "lengths must have an entry for each part",
            seen=f"{len(batches)} parts, {len(of_parts)} entries",
        )
    chunks = []
    for batch, sizes in zip(batches, of_parts, strict=True):
        limit = micro_batch if sizes is None else tokens
        if limit is None:
            raise SettingError(
                "the size of a chunk is missing",
                seen=f"micro_batch={micro_batch}, tokens={tokens}, lengths "
                f"{'missing' if sizes is None else 'given'}",
                fix="micro_batch=64; or tokens=8192 and lengths=[...], one for each",
            )
        if sizes is None:
            chunks.append(chunks_of_examples(batch, limit))
        else:
            chunks.append(chunks_of_tokens(batch, sizes, limit))
    return chunks


def _encoded(encoder: Encoder, chunk: Chunk) -> Tensor:
    with user_code("an encoder"):
        rows = encoder(chunk.batch)
    count = len(chunk.indices)
    if not isinstance(rows, Tensor) or not rows.dim() or len(rows) != count:
        seen = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise JobError(
            "an encoder must give a tensor with a row for each example",
            seen=f"{seen} of {count} examples",
            fix="lambda batch: network(batch).pooler_output, and model=network",
        )
    return rows


def _whole(features: Sequence[Tensor], chunks: Sequence[Chunk]) -> Tensor:
    """All chunks' features in the batch's order: a leaf."""
    indices = torch.tensor([i for chunk in chunks for i in chunk.indices])
    rows = torch.cat(list(features))
    return rows[indices.argsort().to(rows.device)].requires_grad_()


def _check_same(again: Tensor, before: Tensor) -> None:
    """Refuse features that differ by more than the order of sums explains."""
    difference = float((again.detach() - before).norm())
    allowed = torch.finfo(before.dtype).eps ** 0.5 * float(before.norm())
    if not difference <= allowed:
        raise JobError(
            "the second pass of a chunk gives other features than the first",
            seen=f"they differ by {difference:.2g}, of {float(before.norm()):.2g}",
            why="the gradient belongs to the first pass's features",
            fix="keep no state between passes, and draw random numbers from the global "
            "generators",
        )


def _drawn(device: torch.device, before: dict[str, Any]) -> bool:
    """Whether any generator has moved since."""
    now = random_state(device)
    if now["python"] != before["python"] or now["numpy"][2] != before["numpy"][2]:
        return True
    return any(
        not torch.equal(now[name], before[name])
        for name in {"torch", "device"} & {*now}
    )


def _check_alone(encoder: Encoder, chunk: Chunk, whole: Tensor) -> None:
    """Refuse features that are others beside fewer examples."""
    count = len(chunk.indices)
    half = chunk.indices[: count // 2]
    if not half:
        return
    with torch.no_grad():
        batch = slice_batch(chunk.batch, 0, len(half), count)
        alone, beside = _encoded(encoder, Chunk(batch, half)), whole[: len(half)]
        difference = float((alone - beside).norm() / beside.norm())
    if difference > TOUCHED:
        raise JobError(
            "examples of a chunk touch each other",
            seen=f"half of a chunk alone has features {difference:.2g} away, of their "
            "norm",
            why="the loss and its gradient would be those of chunks, not of the batch",
            fix="rb.coupling.leaks(encoder, batch) says where",
        )


def _check_loss(value: Any) -> None:
    if isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad:
        return
    seen = type(value).__name__
    if isinstance(value, Tensor):
        seen = f"shape {tuple(value.shape)}, requires_grad={value.requires_grad}"
    raise JobError(
        "the loss must be one number with a gradient",
        seen=seen,
        fix="loss.mean(); sum / count in the place of (sum, count)",
    )


def _check_buffers(modules: Sequence[nn.Module], before: Sequence[_Buffers]) -> None:
    """Refuse passes that have changed a buffer, and put it back."""
    for module, saved in zip(modules, before, strict=True):
        changed = [
            name
            for name, buffer in module.named_buffers()
            if not torch.equal(buffer, saved.get(name, buffer))
        ]
        if changed:
            set_buffers(module, saved)
            raise JobError(
                "a forward pass changes a buffer of an encoder",
                seen=", ".join(changed[:3]),
                why="each chunk would meet another network, and in its second pass too",
                fix="the encoder, or the layer that has it, in eval mode",
            )


class _Exchange:
    """When DDP exchanges gradients: in the last pass of each model that it wraps."""

    def __init__(self, modules: Sequence[nn.Module], parts: Sequence[int]) -> None:
        self.last: dict[DistributedDataParallel, int] = {}
        for turn, part in enumerate(parts):
            for module in modules[part].modules():
                if isinstance(module, DistributedDataParallel):
                    self.last[module] = turn

    @contextmanager
    def in_pass(self, turn: int) -> Iterator[None]:
        """Around forward and backward: the others keep their gradients for now."""
        with ExitStack() as stack:
            for ddp, last in self.last.items():
                if last != turn:
                    stack.enter_context(ddp.no_sync())
            yield

    def others(self, turn: int) -> list[Tensor]:
        """A sum over all parameters that are exchanged now, to be met with zero.

        DDP waits in its last pass for every parameter: of the other tower, and of the
        loss. With ``find_unused_parameters`` it does not.
        """
        return [
            torch.stack([p.sum().float() for p in ddp.parameters() if p.requires_grad])
            for ddp, last in self.last.items()
            if last == turn and not ddp.find_unused_parameters
        ]
