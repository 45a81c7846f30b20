"""How an edit of GRACE or WISE answers a batch: for each token or row what it answers to that one alone.

Both replace a layer by one that decides while the model runs, and were written for one prompt at a time. GRACE looks
at a single position, that of the last edit's prompt, whatever is asked; WISE takes one decision for a whole batch,
padding included. Left so, what a model answers depends on what else is in the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class EachToken(nn.Module):
    """GRACE's layer asked at every position on its own, as it is when a text is generated token by token."""

    def __init__(self, adapter: Any) -> None:
        super().__init__()
        self.adapter = adapter
        adapter.key_id = 0
        adapter.iter = -1  # 0 would make it learn
        adapter.config.val_init = "warm"  # "cold" draws a number at each call, which nothing reads any more

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, t, m) -> (n, t, d)."""
        answer: Tensor = self.adapter(hidden.reshape(-1, 1, hidden.shape[-1]))
        return answer.reshape(*hidden.shape[:-1], -1)


class EachRow(nn.Module):
    """WISE's layer asked for every row on its own, without its padding."""

    def __init__(self, adapter: Any, model: PreTrainedModel) -> None:
        super().__init__()
        self.adapter = adapter
        for name in ("original_layer_output", "new_weight_layer_output"):
            vars(adapter).pop(name, None)  # the last edit's graph
        self._mask: Tensor | None = None
        # The mask reaches the decoder, not its layers.
        model.base_model.register_forward_pre_hook(self._keep_mask, with_kwargs=True)

    def _keep_mask(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, t, m) -> (n, t, d); zero where the mask is."""
        rows, length = hidden.shape[:2]
        mask = torch.ones(rows, length, dtype=torch.bool, device=hidden.device)
        if self._mask is not None and self._mask.shape[0] == rows and self._mask.shape[1] >= length:
            mask = self._mask[:, -length:].to(hidden.device).bool()
        answers = []
        for row, kept in zip(hidden, mask, strict=True):
            answer = row.new_zeros(length, self.adapter.value_shape)
            if kept.any():
                answer[kept] = self.adapter(row[kept].unsqueeze(0)).squeeze(0)
            answers.append(answer)
        return torch.stack(answers)
