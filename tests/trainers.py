"""Small Hugging Face Trainers, and what they really do, step by step."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

WORDS, LENGTH = 40, 8


class Texts(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Random tokens; where ragged, some labels are left out, more of some examples."""

    def __init__(self, count: int, ragged: bool = False, seed: int = 0) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(WORDS, (count, LENGTH), generator=draws)
        self.labels = self.ids.clone() if ragged else self.ids
        if ragged:
            keep = torch.randint(2, LENGTH, (count, 1), generator=draws)
            self.labels[torch.arange(LENGTH) > keep] = -100

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def gpt(seed: int = 0) -> nn.Module:
    """A GPT-2 of 5,000 parameters, in float64, without dropout."""
    torch.manual_seed(seed)
    shape = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 16, "n_layer": 1}
    config = transformers.GPT2Config(
        **shape, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).double()


def bert() -> nn.Module:
    """A BERT that classifies."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


class Recorded(transformers.Trainer):
    """Keeps, of every update: examples, rate, and how far its gradient is off."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.waiting: list[dict[str, Tensor]] = []
        self.batches: list[list[tuple[int, ...]]] = []
        self.rates: list[float] = []
        self.off: list[float] = []  # relative distance from the large batch's gradient
        self.size: list[float] = []  # norm over the large batch's
        super().__init__(*args, **kwargs)
        self.add_callback(_Look(self))

    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        self.waiting.append(dict(inputs))
        return super().training_step(model, inputs, *args)

    @property
    def counts(self) -> list[int]:
        return [len(batch) for batch in self.batches]


class _Look(transformers.TrainerCallback):
    def __init__(self, trainer: Recorded) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **given: Any) -> None:
        to, model = self.trainer, given["model"]
        batch = {k: torch.cat([m[k] for m in to.waiting]) for k in to.waiting[0]}
        to.waiting = []
        if to.args.world_size > 1:
            parts: list[Any] = [None] * to.args.world_size
            torch.distributed.all_gather_object(parts, batch)
            batch = {k: torch.cat([part[k] for part in parts]) for k in batch}
        made = torch.cat([p.grad.flatten() for p in model.parameters()])
        _, count = to.get_batch_samples(iter([batch]), 1, to.args.device)
        loss = to.compute_loss(model, {**batch}, num_items_in_batch=count)
        large = torch.autograd.grad(loss, list(model.parameters()))
        whole = torch.cat([g.flatten() for g in large])
        to.batches.append([tuple(row.tolist()) for row in batch["input_ids"]])
        to.rates.append(given["optimizer"].param_groups[0]["lr"])
        to.off.append(float((made - whole).norm() / whole.norm()))
        to.size.append(float(made.norm() / whole.norm()))


def trainer(
    folder: Path,
    model: nn.Module | None = None,
    data: Any = None,
    callbacks: Any = (),
    kind: type[transformers.Trainer] | None = Recorded,
    held: Any = None,
    **settings: Any,
) -> Any:
    """On the CPU, silent; micro-batches of 4."""
    settings = {
        "per_device_train_batch_size": 4,
        "max_grad_norm": 0.0,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "logging_steps": 10,
        "report_to": "none",
        **settings,
    }
    return (kind or transformers.Trainer)(
        gpt() if model is None else model,
        transformers.TrainingArguments(
            str(folder), use_cpu=True, disable_tqdm=True, **settings
        ),
        train_dataset=Texts(128) if data is None else data,
        eval_dataset=held,
        callbacks=list(callbacks),
    )
