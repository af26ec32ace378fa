"""torch.compile of a model's training forward, where it works; where not, one line and the model as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.host import terminal


class CompiledForward:
    """Calls `model` compiled. Its modules, parameters and `state_dict` stay the model's own.

    What changes how the model computes, frozen BatchNorm for one, is guarded: the next call compiles anew.
    The whole forward is one graph or none, so that a failure leaves no statistic moved halfway.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        torch.compiler.reset()  # other trainings of this process count towards the limit of recompilations
        self._model, self._name = model, name
        self._compiled = torch.compile(model, fullgraph=True, dynamic=False)
        self._works = True

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, S, S)."""
        from torch._dynamo import config as dynamo  # slow to import, and needed by who compiles alone
        from torch._dynamo.exc import TorchDynamoException
        from torch._functorch import config as functorch

        if self._works:
            try:
                # Eager-mode quantization observes in hooks that dynamo would not look into. The backward is
                # compiled with the forward, where a failure can still be answered.
                with dynamo.patch(dont_skip_tracing=True), functorch.patch(force_non_lazy_backward_lowering=True):
                    return self._compiled(images)
            except TorchDynamoException as error:
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                terminal.warn(f"{self._name}.compile: {reason.strip()[:200]}; training goes on uncompiled")
                self._works = False
        return self._model(images)
