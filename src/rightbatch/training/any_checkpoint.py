"""Checkpoints of any trainer, read without running code from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rightbatch.core.errors import MissingExtraError, RunFolderError, SettingError
from rightbatch.core.json_io import parse_json
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.job.several_optimizers import MEMBERS
from rightbatch.training.checkpoint import Checkpoints, load_checkpoint, no_memory
from rightbatch.training.run_folder import CHECKPOINTS

# What trainers call these, in the order in which they are looked for.
MODEL = ("model", "model_state_dict", "state_dict")
OPTIMIZER = ("optimizer", "optimizer_state_dict", "optimizer_states")
STEPS, EXAMPLES, EPOCHS = ("global_step", "steps", "step"), ("examples",), ("epoch",)
# A Hugging Face Trainer's folder; large models come in several files.
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
HF_OPTIMIZER, HF_PROGRESS = "optimizer.pt", "trainer_state.json"
RECIPE = (
    'torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), '
    '"step": step}, path)'
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Start:
    """A model and its optimizer at some moment of a run, whoever trained it.

    Attributes:
        path: Where it was read from.
        model: State dict, as it was saved.
        optimizer: State dict; None if there was none.
        buffers: Buffers that are in no state dict, where they were saved.
        batch_size: Examples per step of the run, where it is known.
        steps: Updates made, where it is known.
        examples: Examples seen, where it is known.
        epochs: Passes over the data made, where it is known.
    """

    path: Path
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any] | None = None
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    batch_size: int | None = None
    steps: int | None = None
    examples: int | None = None
    epochs: float | None = None


def load_start(path: str | Path) -> Start:
    """Read what a trainer saved.

    Understood are the files of ``torch.save`` that hold a plain state dict, or state
    dicts as ``model`` and ``optimizer``, ``model_state_dict`` and
    ``optimizer_state_dict``, or ``state_dict`` and ``optimizer_states`` (Lightning);
    the checkpoint folders of the Hugging Face Trainer; ``.safetensors``; and
    checkpoints and run folders of rightbatch.

    Args:
        path: The file or folder.

    Raises:
        RunFolderError: Missing, damaged, or not to be read without running code.
        SettingError: None of these layouts.
        MissingExtraError: It is a ``.safetensors`` file, and safetensors is missing.

    Example:
        >>> import tempfile, torch
        >>> model = torch.nn.Linear(3, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": model.state_dict(), "step": 7}, f"{folder}/a.pt")
        ...     load_start(f"{folder}/a.pt").steps
        7
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path)
    state = _read_tensors(path)
    if isinstance(state, Mapping):
        if str(state.get("format")).startswith("rightbatch/checkpoint/"):
            return _of_rightbatch(path, load_checkpoint(path))
        if state and all(isinstance(value, Tensor) for value in state.values()):
            return Start(path=path, model=state)
        model = _first(state, MODEL)
        if isinstance(model, Mapping) and model:
            return Start(
                path=path,
                model=model,
                optimizer=_as_one(_first(state, OPTIMIZER)),
                **_progress(state),
            )
    keys = list(state)[:6] if isinstance(state, Mapping) else type(state).__name__
    raise SettingError(
        f"{path} holds no state of a model that is understood",
        seen=f"keys {keys}" if isinstance(keys, list) else f"a {keys}",
        fix=RECIPE,
    )


def _of_folder(folder: Path) -> Start:
    for place in (folder / CHECKPOINTS, folder):
        if any(place.glob("step-*.pt")):
            newest = Checkpoints(place).newest()
            if newest is not None:
                return _of_rightbatch(*newest)
    files = next((found for w in WEIGHTS if (found := sorted(folder.glob(w)))), [])
    if not files:
        raise RunFolderError(
            f"{folder} holds no checkpoint that is understood",
            seen=", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "no files",
            fix="a run folder of rightbatch, a checkpoint-… folder of the Hugging Face "
            f"Trainer, or a file: {RECIPE}",
        )
    model: dict[str, Any] = {}
    for file in files:
        model |= _read_tensors(file)
    optimizer, progress = folder / HF_OPTIMIZER, folder / HF_PROGRESS
    return Start(
        path=folder,
        model=model,
        optimizer=_read_tensors(optimizer) if optimizer.exists() else None,
        **_progress(_read_json(progress) if progress.exists() else {}),
    )


def _of_rightbatch(path: Path, state: Mapping[str, Any]) -> Start:
    return Start(
        path=path,
        model=state["model"],
        optimizer=state["optimizer"] or None,
        buffers=state["buffers"],
        batch_size=state["stream"]["batch_size"],
        steps=state["steps"],
        examples=state["examples"],
    )


def _read_tensors(path: Path) -> Any:
    """What ``torch.save`` or safetensors wrote, if tensors and plain values only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen kinds
        if is_out_of_memory(error):
            raise no_memory(path, error) from error
        if isinstance(error, OSError):
            raise RunFolderError(
                f"cannot read {path}",
                seen=f"{type(error).__name__}: {error.strerror or error}",
                fix="a run folder of `rightbatch train`, or a file of torch.save",
            ) from error
        if isinstance(error.__cause__, ImportError):
            raise MissingExtraError(
                f"{path.name} is read by safetensors", fix="pip install safetensors"
            ) from error
        lines = str(error).splitlines() or [type(error).__name__]
        refused = next((x for x in lines if "GLOBAL" in x), lines[0])
        raise RunFolderError(
            f"cannot read {path}",
            seen=refused.strip()[:160],
            why="only tensors and plain values are read, so that no code runs from it",
            fix=f"save it again without the rest: {RECIPE}; or allow what it holds by "
            "torch.serialization.add_safe_globals([...]) in the job's file",
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}", seen=str(error)[:160]) from error


def _first(state: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((state[name] for name in names if state.get(name) is not None), None)


def _as_one(optimizer: Any) -> Any:
    """The state of one optimizer, or of several as one; Lightning keeps a list."""
    if not isinstance(optimizer, (list, tuple)):
        return optimizer
    if len(optimizer) > 1:
        return {MEMBERS: list(optimizer)}
    return optimizer[0] if optimizer else None


def _progress(state: Any) -> dict[str, Any]:
    """How far the run had come, where that is a number."""
    if not isinstance(state, Mapping):
        return {}

    def number(names: tuple[str, ...]) -> float | None:
        value = _first(state, names)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if plain and 0 <= value < math.inf else None

    steps, examples = number(STEPS), number(EXAMPLES)
    return {
        "steps": None if steps is None else int(steps),
        "examples": None if examples is None else int(examples),
        "epochs": number(EPOCHS),
    }
