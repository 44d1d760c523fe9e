"""The model that is trained: some layers of the target, with the target's embedding and head as they are.

Embedding and head hold most of a small model's weights and are right already, so they are not trained: they need no
gradients, no optimizer state, and may be stored as the target stores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from workers.engine.device import multiplies_in_bfloat16
from workers.training.batches import Batch
from workers.training.losses import LOSSES

NOWHERE = -1


class Student(nn.Module):
    """Loss of a batch, and log-probabilities over the draft vocabulary."""

    def __init__(self, folder: Path, draft_ids: Sequence[int], loss: str, device: torch.device) -> None:
        super().__init__()
        self.module: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", device_map=device, trust_remote_code=False
        )
        embedding: Any = self.module.get_input_embeddings()
        head: Any = self.module.get_output_embeddings()  # type: ignore[no-untyped-call]
        for part in (embedding, head):
            part.weight.requires_grad_(False)
        ids = torch.tensor(draft_ids, device=device)
        places = torch.full((head.weight.shape[0],), NOWHERE, device=device)
        places[ids] = torch.arange(len(ids), device=device)
        self.register_buffer("head", head.weight[ids].clone(), persistent=False)
        self.register_buffer("places", places, persistent=False)  # [vocab]; a token's number among the draft_ids
        self._loss = LOSSES[loss]
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=multiplies_in_bfloat16(device))

    def trained(self) -> dict[str, Tensor]:
        """By name, what training changes."""
        return {name: each.data for name, each in self.module.named_parameters() if each.requires_grad}

    def log_probabilities(self, batch: Batch) -> Tensor:
        """The draft's law where each token of the batch's answers comes, [num_tokens, num_draft_tokens]."""
        base: Any = self.module.base_model
        with self._autocast:
            output = base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            rows = output.last_hidden_state[batch.answer_rows[:, 0], batch.answer_rows[:, 1]]
            logits: Tensor = nn.functional.linear(rows, self.get_buffer("head"))
        return logits.float().log_softmax(-1)

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss over the batch's tokens."""
        places = self.get_buffer("places")[batch.top_ids]
        target = torch.where(places == NOWHERE, 0.0, batch.top_logprobs.exp())
        return self._loss(self.log_probabilities(batch), target, places.clamp(min=0)).mean()
