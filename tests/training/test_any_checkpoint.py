"""What trainers save, each in its own layout; and what is refused."""

import io
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import regression_job
from rightbatch.training.any_checkpoint import load_start

MODEL = nn.Linear(5, 1)
WEIGHTS = MODEL.state_dict()
MOMENTS = torch.optim.Adam(MODEL.parameters()).state_dict()

LAYOUTS: dict[str, tuple[dict[str, Any], tuple[Any, Any, Any]]] = {
    "weights": (dict(WEIGHTS), (None, None, None)),
    "short": (
        {"model": WEIGHTS, "optimizer": MOMENTS, "step": 7, "epoch": 2},
        (7, None, 2),
    ),
    "tutorial": (
        {
            "model_state_dict": WEIGHTS,
            "optimizer_state_dict": MOMENTS,
            "epoch": torch.tensor(3),
            "loss": 0.5,
        },
        (None, None, 3),
    ),
    "lightning": (
        {
            "state_dict": WEIGHTS,
            "optimizer_states": [MOMENTS],
            "global_step": 9,
            "epoch": 1,
            "pytorch-lightning_version": "2.6",
        },
        (9, None, 1),
    ),
    "examples": ({"model": WEIGHTS, "examples": 640}, (None, 640, None)),
    "words": ({"model": WEIGHTS, "step": "last", "epoch": True}, (None, None, None)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_one_file(layout: str, tmp_path: Path) -> None:
    saved, progress = LAYOUTS[layout]
    torch.save(saved, tmp_path / "a.pt")
    start = load_start(tmp_path / "a.pt")
    assert (start.steps, start.examples, start.epochs) == progress
    assert torch.equal(start.model["weight"], MODEL.weight)
    held = any(key.startswith("optimizer") for key in saved)
    assert (start.optimizer is not None) == held
    assert not held or (start.optimizer or {})["param_groups"][0]["lr"] == 1e-3


def test_a_folder_of_the_hugging_face_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    torch.save(MOMENTS, tmp_path / "optimizer.pt")
    progress = {"global_step": 500, "epoch": 1.5, "log_history": []}
    (tmp_path / "trainer_state.json").write_text(json.dumps(progress))
    start = load_start(tmp_path)
    assert (start.steps, start.epochs) == (500, 1.5)
    assert set(start.model) == {"weight", "bias"}
    assert start.optimizer is not None
    # Safetensors, in two files; as it is read by its own package.
    torch.save({"weight": MODEL.weight}, tmp_path / "model-1-of-2.safetensors")
    torch.save({"bias": MODEL.bias}, tmp_path / "model-2-of-2.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.torch", raising=False)
    with pytest.raises(rb.MissingExtraError, match="is read by safetensors") as missing:
        load_start(tmp_path)
    assert missing.value.fix == "pip install safetensors"
    package: Any = types.ModuleType("safetensors")
    reader: Any = types.ModuleType("safetensors.torch")
    reader.load_file = lambda path, device: torch.load(
        io.BytesIO(Path(path).read_bytes())
    )
    package.torch = reader
    monkeypatch.setitem(sys.modules, "safetensors", package)
    monkeypatch.setitem(sys.modules, "safetensors.torch", reader)
    assert set(load_start(tmp_path).model) == {"weight", "bias"}
    alone = load_start(tmp_path / "model-1-of-2.safetensors")
    assert (set(alone.model), alone.optimizer) == ({"weight"}, None)


def test_runs_of_our_own(tmp_path: Path) -> None:
    job = regression_job(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    run = rb.train(job, batch_size=32, examples=320, out=tmp_path / "run")
    assert run.checkpoint is not None
    for path in (tmp_path / "run", run.checkpoint.parent, run.checkpoint):
        start = load_start(path)
        assert (start.steps, start.examples, start.batch_size) == (10, 320, 32)
        assert torch.equal(start.model["weight"], run.model.weight)  # type: ignore[arg-type]
        assert start.optimizer is not None
    whole = run.checkpoint.read_bytes()
    run.checkpoint.write_bytes(whole[:-100])
    with pytest.raises(rb.RunFolderError, match=r"cannot read|damaged"):
        load_start(run.checkpoint)


class Settings:
    """Of somebody's trainer."""


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(rb.RunFolderError, match="cannot read") as missing:
        load_start(path)
    assert "FileNotFoundError" in missing.value.seen
    path.write_text("no checkpoint")
    with pytest.raises(rb.RunFolderError, match="cannot read"):
        load_start(path)
    path.write_bytes(b"")
    with pytest.raises(rb.RunFolderError, match="cannot read"):
        load_start(path)
    torch.save({"model": WEIGHTS, "args": Settings()}, path)
    with pytest.raises(rb.RunFolderError, match="cannot read") as code:
        load_start(path)
    assert "Settings" in code.value.seen
    assert "no code runs" in code.value.why
    assert "add_safe_globals" in code.value.fix
    torch.save(MODEL, path)  # the module itself
    with pytest.raises(rb.RunFolderError, match="cannot read"):
        load_start(path)
    torch.save({"net": WEIGHTS, "lr": 0.1}, path)
    with pytest.raises(rb.SettingError, match="no state of a model") as keys:
        load_start(path)
    assert keys.value.seen == "keys ['net', 'lr']"
    torch.save([1, 2], path)
    with pytest.raises(rb.SettingError, match="no state of a model") as other:
        load_start(path)
    assert other.value.seen == "a list"
    (tmp_path / "empty").mkdir()
    with pytest.raises(rb.RunFolderError, match="no checkpoint") as nothing:
        load_start(tmp_path / "empty")
    assert nothing.value.seen == "no files"


def test_no_code_of_the_file_runs(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    for save in (torch.save, lambda v, p: p.write_bytes(pickle.dumps(v))):
        save({"model": WEIGHTS, "extra": Trap()}, tmp_path / "a.pt")
        with pytest.raises(rb.RunFolderError):
            load_start(tmp_path / "a.pt")
    assert not (tmp_path / "sprung").exists()
