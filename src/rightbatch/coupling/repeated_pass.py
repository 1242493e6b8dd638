"""One forward pass made again and again from the same state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import SettingError
from rightbatch.core.guards import ModelState, preserved_rng
from rightbatch.core.trees import map_tensors
from rightbatch.core.user_code import user_code
from rightbatch.coupling.module_trace import Call, copies, traced
from rightbatch.coupling.movement import difference

Run = Callable[[nn.Module, Any], Any]
Inside = Callable[[], AbstractContextManager[Any]]


class RepeatedPass:
    """A model run on one batch or another, each time as if for the first time.

    Args:
        model: In the mode to be looked at; its state is put back after every pass.
        run: What is done with a batch.
        batch: As it is.
        called: Whether what the outermost modules return is observed too: ``run``
            is a loss.

    Raises:
        SettingError: An output is no number.

    Attributes:
        outputs: What is observed for the batch as it is.
        again: The same once more where that differs, else None.
        passes: How many have been made.
    """

    def __init__(
        self, model: nn.Module, run: Run, batch: Any, *, called: bool = False
    ) -> None:
        self.model, self.run, self.batch, self.called = model, run, batch, called
        self.passes = 0
        self._frozen = [p for p in model.parameters() if not p.requires_grad]
        self._state = ModelState(model, self._frozen)  # such as of a momentum encoder
        self.outputs = self.observe(batch)
        if any(output.isnan().any() for output in self.outputs):
            raise SettingError(
                "an output is not a number",
                seen="NaN for the batch as it is",
                why="numbers that are none cannot be compared",
                fix="give a batch, or weights, with finite outputs",
            )
        again = self.observe(batch)
        same = [t.shape for t in again] == [t.shape for t in self.outputs] and not any(
            bool(difference(a, b).any())
            for a, b in zip(self.outputs, again, strict=True)
        )
        self.again = None if same else again

    def observe(self, batch: Any, inside: Inside = nullcontext) -> list[Tensor]:
        """What the pass returns, and with ``called`` what the modules do."""
        with traced(outermost=True) if self.called else nullcontext([]) as calls:
            result = self.result(batch, inside)
        return [t for call in calls for t in call.outputs] + copies(result)

    def calls(self, batch: Any, inside: Inside = nullcontext) -> list[Call]:
        """What all modules are given and return."""
        with traced() as calls:
            self.result(batch, inside)
        return calls

    def result(self, batch: Any, inside: Inside = nullcontext) -> Any:
        """What one pass returns, with gradients: a loss may need one inside.

        Args:
            batch: As it is or changed; the pass gets a copy.
            inside: Makes what is entered around it.

        Raises:
            JobError: The user's code raised.
        """
        self.passes += 1
        given = map_tensors(lambda tensor: tensor.detach().clone(), batch)
        try:
            with preserved_rng(), torch.enable_grad(), user_code("the model"), inside():
                return self.run(self.model, given)
        finally:
            self._state.restore()
