"""Auxiliary task of the adapters: name the object in each cell by attention between image and text tokens.

A sentence with its mask says something about one noun; with hundreds of nouns, each is rarely seen. Here every object
of a picture is compared with all nouns at once: the attention logits between an object's image tokens and the text
tokens of its noun should be larger than those of any other noun. There are no parameters of its own: the projections
that are trained are those of the adapters' attention. The idea is that of contrastive image-text training (Radford et
al. 2021), here of cells and nouns; the published training has no such loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from refervos.samwise.cmt import HierarchicalSelectiveAttention
from refervos.samwise.model import Samwise
from refervos.training.stages.movement import image_of
from refervos.training.stages.noun_states import TEMPLATES, noun_states
from refervos.training.stages.world_tensors import UNLABELLED
from refervos.training.step_means import Mean, mean_of_batch

_FIRST = 1  # the first adapter sees too little of an object to recognise it


class NamingLoss(nn.Module):
    """Contrastive loss between image tokens inside the second and third adapter and the text tokens of nouns.

    Args:
        model: The model; its forward passes in training mode are observed. Its adapters must have HSA.
        names: The nouns, W of them.
    """

    def __init__(self, model: Samwise, names: Sequence[str]) -> None:
        super().__init__()
        adapters: list[Any] = list(model.adapters)[_FIRST:]
        self._adapters = adapters
        assert model.tokenizer is not None
        self._nouns = noun_states(model.text, model.tokenizer, names)
        self._seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in adapters]
        self._hooks: list[RemovableHandle] = [
            adapter.hsa.register_forward_hook(self._keep(number)) for number, adapter in enumerate(adapters)
        ]

    def _keep(self, number: int):  # type: ignore[no-untyped-def]
        def hook(_: HierarchicalSelectiveAttention, given: tuple[Tensor, int], change: Tensor) -> None:
            if self.training and torch.is_grad_enabled():
                window, frames = given
                own = window[:, :, -frames:]  # (N, P, T, S, A)
                self._seen[number].append((own, own + change))

        return hook

    def forward(self, labels: Tensor, mean: Mean = mean_of_batch) -> Tensor:
        """Compute the loss over the model's last forward pass, and clear its tokens.

        Args:
            labels: Index of the noun of each cell, int64 (N, T, n, n); ``UNLABELLED``, or W and more, if it has none.
            mean: Averages over the labelled cells; called with ``naming 0`` and so on.

        Returns:
            A scalar: the mean of the cross-entropies of both attentions of each adapter.
        """
        nouns = self._nouns[int(torch.randint(len(TEMPLATES), ()))]
        total = labels.new_zeros((), dtype=torch.float32)
        for number, (adapter, seen) in enumerate(zip(self._adapters, self._seen, strict=True)):
            before, after = (torch.cat(parts, dim=2) for parts in zip(*seen, strict=True))  # (N, P, T, S, A) each
            seen.clear()
            side = adapter.hsa.side
            scale = (before.shape[-1] // adapter.vision_to_text.heads) ** -0.5
            text = F.linear(nouns[number].to(before.device), adapter.text_down.weight)  # (W, A)
            key, _ = adapter.vision_to_text.keys_and_values(text)
            query = adapter.vision_to_text.queries(_cells(after, side, labels))  # (cells, A)
            label = labels.flatten()
            known = (label != UNLABELLED) & (label < len(text))
            seen_key, _ = adapter.text_to_vision.keys_and_values(_cells(before, side, labels))
            pairs = ((query, key), (seen_key, adapter.text_to_vision.queries(text)))
            for part, (cells, words) in enumerate(pairs):
                logits = (cells[known] @ words.T).float() * scale  # (known, W)
                entropy = F.cross_entropy(logits, label[known], reduction="sum")
                total = total + mean(f"naming {2 * number + part}", entropy, known.sum())
        return total / (2 * len(self._adapters))


def _cells(tokens: Tensor, side: int, labels: Tensor) -> Tensor:
    """Bring tokens in patches (N, P, T, S, A) onto the grid of the labels (N, T, n, n): (N*T*n*n, A)."""
    image = image_of(tokens, side)  # (N*T, g, g, A)
    repeats = labels.shape[-1] // image.shape[1]
    return image.repeat_interleave(repeats, dim=1).repeat_interleave(repeats, dim=2).flatten(0, 2)
