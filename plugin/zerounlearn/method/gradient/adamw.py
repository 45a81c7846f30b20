"""AdamW on weights of any precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MasterAdamW:
    """AdamW, whose small steps vanish in half precision: there it works on float32 copies of the parameters.

    Elsewhere it works on the parameters' own memory. Either way a user's `.grad` is left alone.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.masters = [
            p.detach().float() if p.dtype in (torch.float16, torch.bfloat16) else p.detach() for p in self.parameters
        ]
        self._optimiser = torch.optim.AdamW(self.masters, lr=lr, weight_decay=weight_decay)

    def take_gradients(self, loss: Tensor, most: float) -> Tensor:
        """The loss's gradients, clipped to a norm of `most` together; gives their norm before that."""
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = None if gradient is None else gradient.to(master.dtype)
        return nn.utils.clip_grad_norm_(self.masters, most)

    def step(self) -> None:
        """One step along the gradients that were taken last."""
        self._optimiser.step()
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if parameter.dtype != master.dtype:
                    parameter.copy_(master)
