"""What kind of optimizer a job has, as far as the batch is concerned."""

from __future__ import annotations

from typing import Literal

import torch

# Optimizers that divide by the gradient's own size, by the names in their class's
# ancestry; any other that has betas is taken for one of them.
ADAM_FAMILY = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad")
Family = Literal["adam", "sgd", "other"]


def optimizer_family(optimizer: torch.optim.Optimizer) -> Family:
    """How an optimizer's rate follows the batch: as Adam's, as SGD's, or unknown."""
    names = {kind.__name__ for kind in type(optimizer).__mro__}
    if names & set(ADAM_FAMILY) or "betas" in optimizer.param_groups[0]:
        return "adam"
    return "sgd" if "SGD" in names else "other"


def decay_is_decoupled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether weight decay acts beside the gradient (AdamW), not through it (L2)."""
    names = {kind.__name__ for kind in type(optimizer).__mro__}
    group = optimizer.param_groups[0]
    return "AdamW" in names or bool(group.get("decoupled_weight_decay"))
