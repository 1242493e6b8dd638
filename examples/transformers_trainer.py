"""A Hugging Face Trainer: its noise in the logs, and a batch that grows.

python examples/transformers_trainer.py
rightbatch tune examples/transformers_trainer.py:trainer
"""

import tempfile

import torch
import transformers

import rightbatch as rb
from rightbatch.integrations.transformers import Callback

WORDS, LENGTH, BATCH = 64, 16, 8


class Sums(torch.utils.data.Dataset):
    """Sequences in which each token is the sum of the two before it, or noise."""

    def __init__(self, count: int, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(WORDS, (count, LENGTH), generator=draws)
        noise = torch.rand(count, LENGTH, generator=draws) < 0.1
        for i in range(2, LENGTH):
            sums = (self.ids[:, i - 1] + self.ids[:, i - 2]) % WORDS
            self.ids[:, i] = torch.where(noise[:, i], self.ids[:, i], sums)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def trainer() -> transformers.Trainer:
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": LENGTH}
    end = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=WORDS, **size, **end)
    args = transformers.TrainingArguments(
        tempfile.mkdtemp(), max_steps=120, logging_steps=40, learning_rate=3e-3,
        per_device_train_batch_size=BATCH, warmup_steps=10, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    data = {"train_dataset": Sums(1024, 0), "eval_dataset": Sums(128, 1)}
    return transformers.Trainer(transformers.GPT2LMHeadModel(config), args, **data)


if __name__ == "__main__":
    run = trainer()
    ramp = rb.schedules.Ramp(BATCH, 4 * BATCH, 480)
    Callback(schedule=ramp).attach(run)
    run.train()
    for line in run.state.log_history[:-1]:
        print({k: line[k] for k in ("step", "loss", "batch/size", "noise/scale")})
