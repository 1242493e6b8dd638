"""When operations are captured: in the forward pass, and where it runs again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.torch_private import saved_tensor_hook
from rightbatch.noise.capture.function_mode import CaptureMode
from rightbatch.noise.capture.group_norms import GroupNorms
from rightbatch.noise.capture.layout import Axis
from rightbatch.noise.capture.plan import Plan
from rightbatch.noise.model_inputs import ModelInputs


class ForwardPass:
    """Puts a `CaptureMode` around the forward pass of a measured step.

    Activation checkpointing runs parts of the forward pass again inside the backward
    pass, where nothing of the first time is active. Once it has been seen, every
    submodule gets hooks of its own that put the mode back around the second run;
    before, and for code that no submodule's call surrounds, checkpointed parts are
    left alone.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        self.model, self.parameters = model, parameters
        self.plan = Plan()
        self.mode: CaptureMode | None = None
        self._inputs: list[ModelInputs] = []
        self._checkpointed = False
        self._saving: list[Any] = []  # what packs saved tensors, by active mode
        self._submodule_hooks: list[Any] = []
        self._stance: Any = None

    def enter(
        self, group_norms: GroupNorms, inputs: ModelInputs, *, verifies: bool
    ) -> None:
        """The model's forward pass begins.

        Args:
            group_norms: Of the step.
            inputs: What the model is called with.
            verifies: Whether the step's plan is to be made, not followed.
        """
        if self.mode is None or self.mode.group_norms is not group_norms:
            self._inputs.clear()
            self.mode = CaptureMode(
                self.parameters,
                group_norms,
                self.plan,
                verifies=verifies,
                examples_axis=self._examples_axis,
            )
            self.mode.allowed = self._allowed
        self._inputs.append(inputs)
        if self._checkpointed and not self._submodule_hooks:
            for module in self.model.modules():
                if module is not self.model:
                    before = module.register_forward_pre_hook(self._enter_submodule)
                    after = module.register_forward_hook(
                        self._leave_submodule, always_call=True
                    )
                    self._submodule_hooks += [before, after]
        # A compiled model runs as written while its operations are captured.
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        self._push()

    def leave(self) -> None:
        """It has ended, well or not."""
        if self._stance is None:
            return
        self._pop()
        stance, self._stance = self._stance, None
        stance.__exit__(None, None, None)

    def close(self) -> None:
        """The backward pass is over."""
        for hook in self._submodule_hooks:
            hook.remove()
        self._submodule_hooks.clear()
        if self.mode is not None:
            self._checkpointed |= self.mode.skipped
            self.mode.release()
        self.mode = None
        self._inputs.clear()

    def _examples_axis(self, tensor: Tensor) -> Axis | None:
        axes = (inputs.examples_axis(tensor) for inputs in self._inputs)
        return next((axis for axis in axes if axis is not None), None)

    def _enter_submodule(self, module: nn.Module, args: Any) -> None:
        if self.mode is not None:
            self._push()

    def _leave_submodule(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._saving:
            self._pop()

    def _push(self) -> None:
        assert self.mode is not None
        self.mode.__enter__()
        self._saving.append(saved_tensor_hook())

    def _pop(self) -> None:
        assert self.mode is not None
        self._saving.pop()
        self.mode.__exit__(None, None, None)

    def _allowed(self) -> bool:
        """Not in a checkpointed stretch whose second run we would not see."""
        return bool(self._saving) and self._saving[-1] is saved_tensor_hook()
