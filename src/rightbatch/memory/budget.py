"""What a training step may take of a device, as named terms that add up."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.machine import container_memory, machine_free_bytes
from rightbatch.core.real_number import real_number
from rightbatch.core.units import show_bytes

# Of free main memory, left to the rest of the machine [assumed].
OTHERS_SHARE = 0.10
# What the CUDA allocator holds beyond what tensors take, where nothing was run: a
# simulated allocator held 1.00 to 1.07 times on jobs of 200 MiB and more, 1.15 at most
# [measured on traces, not on a device].
RESERVE_SHARE = 0.07
# A CUDA context with torch's kernels, where none has been made yet [assumed].
CONTEXT_BYTES = 512 * 2**20
# One workspace of cuBLAS, taken from the allocator at the first product: 8 MiB up to
# Ampere, 32 MiB from Hopper on [cited: torch's getChosenWorkspaceSize].
WORKSPACE_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Term:
    """Bytes that are not for tensors: how many, for what, and how that is known."""

    name: str
    bytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The memory of a step: what there is, less what is not for tensors.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or another kind.
        total: Bytes to begin with.
        source: What that is.
        terms: What goes off.
    """

    device: str
    total: int
    source: str
    terms: tuple[Term, ...] = ()

    @property
    def bytes(self) -> int:
        """What is left for the tensors of a step."""
        return self.total - sum(t.bytes for t in self.terms)

    def lines(self) -> list[str]:
        """One line a term, and their sum."""
        rows = [(show_bytes(self.total), self.source)]
        rows += [
            (f"-{show_bytes(t.bytes)}", f"{t.name} ({t.source})") for t in self.terms
        ]
        if self.terms:
            rows.append((f"={show_bytes(self.bytes)}", "for the tensors of a step"))
        width = max(len(amount) for amount, _ in rows)
        return [f"{amount:>{width}}  {what}" for amount, what in rows]


def budget_for(
    device: torch.device, memory: float | None = None, *, margin: float = 0.0
) -> Budget:
    """What a step may take on a device.

    Args:
        device: Where it runs; a CUDA device may be absent if ``memory`` is given.
        memory: Bytes for the whole step, weights and optimizer included; default: what
            is free now.
        margin: Share kept for examples longer than those measured.

    Raises:
        SettingError: ``memory`` is not positive, or the device's is unknown.
    """
    if not 0 <= real_number(margin, "margin") < 1:
        raise SettingError(
            "a margin is a share from 0 to 1", seen=f"margin={margin!r}", fix="0.1"
        )
    if memory is None:
        total, source = _free(device)
    else:
        total, source = int(real_number(memory, "memory", positive=True)), "as given"
    terms: list[Term] = []

    def left() -> int:
        return total - sum(term.bytes for term in terms)

    if device.type == "cuda":
        if memory is not None:
            terms.append(Term("CUDA context", CONTEXT_BYTES, "assumed"))
        terms.append(Term("cuBLAS workspace", WORKSPACE_BYTES, "cited"))
        if left() <= 0:
            raise SettingError(
                "this memory is less than CUDA itself needs",
                seen=f"{show_bytes(total)}, and {show_bytes(total - left())} for "
                "context and workspace",
                fix="the memory of the whole device",
            )
        reserve = round(RESERVE_SHARE * left())
        terms.append(Term("allocator's reserve", reserve, "7 %, simulated"))
    elif memory is None:
        others = round(OTHERS_SHARE * total)
        terms.append(Term("kept for others", others, "10 %, assumed"))
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1  # under torchrun
        if beside:
            name = f"for the {beside} other processes here"
            theirs = left() - left() // (beside + 1)
            terms.append(Term(name, theirs, "LOCAL_WORLD_SIZE"))
    if margin:
        kept = round(margin * left())
        terms.append(Term("margin for longer examples", kept, "as given"))
    return Budget(device=device.type, total=total, source=source, terms=tuple(terms))


def _free(device: torch.device) -> tuple[int, str]:
    """Bytes free now on a device, and in words what they are."""
    if device.type == "cpu":
        free, container = machine_free_bytes(), container_memory()
        if container is not None and container < free:
            return container, "left to this container"
        return free, "free on this machine"
    if device.type == "cuda" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(device)  # makes the context
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held, "free on the device, or held by torch and unused"
    raise SettingError(
        f"how much memory a {device.type} device has is not known here",
        fix="say it: memory=80e9, or --limit 80GB",
    )
