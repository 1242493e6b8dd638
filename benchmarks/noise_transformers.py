"""The monitor on architectures of transformers, made small from their configs.

Truth is one float64 pass for every example alone; needs ``pip install transformers``.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rightbatch as rb
from results import write_json

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "dropout": 0.0,
    "activation_dropout": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "dropout_rate": 0.0,
    "rotary_dim": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "ffn_dim": 24,
    "d_model": 16,
    "d_ff": 24,
    "d_kv": 8,
    "num_layers": 2,
    "num_heads": 2,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "embedding_size": 16,
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "word_embed_proj_dim": 16,
    "decoder_start_token_id": 1,
}
CAUSAL = [
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "opt",
    "bloom",
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "gemma",
    "gemma2",
    "phi",
    "phi3",
    "falcon",
    "mpt",
    "stablelm",
    "olmo",
    "olmo2",
    "cohere",
    "granite",
    "starcoder2",
    "codegen",
    "biogpt",
    "xglm",
    "ctrl",
    "openai-gpt",
    "persimmon",
    "nemotron",
    "glm",
]
MASKED = [
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "deberta-v2",
    "albert",
    "mpnet",
    "modernbert",
]
PAIRS = [
    "t5",
    "bart",
    "mbart",
    "pegasus",
    "marian",
    "blenderbot",
]


def model_of(kind: str, transformers: Any) -> nn.Module:
    """A small model of this kind with random weights."""
    default = transformers.AutoConfig.for_model(kind)
    known = {k: v for k, v in SMALL.items() if hasattr(default, k)}
    config = transformers.AutoConfig.for_model(kind, **known)
    factory = {
        **dict.fromkeys(CAUSAL, "AutoModelForCausalLM"),
        **dict.fromkeys(MASKED, "AutoModelForMaskedLM"),
        **dict.fromkeys(PAIRS, "AutoModelForSeq2SeqLM"),
    }[kind]
    return getattr(transformers, factory).from_config(config)


def verdict(kind: str, length: int, transformers: Any) -> tuple[str, str]:
    """Equal, part, declared, wrong or crash; and what was seen."""
    torch.manual_seed(0)
    model, batch = model_of(kind, transformers).double(), 4
    ids, labels = (torch.randint(3, 61, (batch, length)) for _ in range(2))

    def loss(rows: slice) -> Tensor:
        given: dict[str, Any] = {"input_ids": ids[rows]}
        if kind in PAIRS:
            given["decoder_input_ids"] = labels[rows]
        logits = model(**given).logits
        return F.cross_entropy(logits.flatten(0, 1), labels[rows].flatten())

    loss(slice(None)).backward()  # what fails without us is not our case
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    try:
        with rb.NoiseMonitor(model, optimizer, math.inf, groups="examples") as monitor:
            for _ in range(5):
                optimizer.zero_grad()
                loss(slice(None)).backward()
                optimizer.step()
            read = monitor.read(window=1)
    except Exception as error:
        return "crash", f"{type(error).__name__}: {str(error)[:80]}"
    if not read.steps:
        return "declared", read.problem[:100]
    missing = read.coverage.missing
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    seen = [p for n, p in trained if n not in missing]
    rows = []
    for b in range(batch):
        made = torch.autograd.grad(loss(slice(b, b + 1)), seen, allow_unused=True)
        pairs = zip(made, seen, strict=True)
        rows.append(
            torch.cat([(p * 0 if g is None else g).flatten() for g, p in pairs])
        )
    matrix = torch.stack(rows).detach()
    trace = float((matrix - matrix.mean(0)).square().sum() / (batch - 1))
    if not math.isclose(read.trace.value, trace, rel_tol=1e-6):
        return "wrong", f"trace {read.trace.value:.6g} for {trace:.6g}"
    reasons = "; ".join(sorted(set(missing.values())))
    return ("part" if missing else "equal"), f"{read.coverage.parameters:.0%} {reasons}"


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*CAUSAL, *MASKED, *PAIRS])
    options = parser.parse_args()
    import transformers

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for kind in options.kinds:
        for length in (4, 7):  # as many positions as examples, and others
            try:
                found[f"{kind}, {length}"] = verdict(kind, length, transformers)
            except Exception as error:  # this version has no such model, say
                found[f"{kind}, {length}"] = "not made", str(error)[:80]
            print(kind, length, *found[f"{kind}, {length}"], flush=True)
    print(Counter(what for what, _ in found.values()))
    write_json("noise-transformers", found)


if __name__ == "__main__":
    main()
