"""The Implicit Tracking Module, from a frame's mask token to the next frame's track token.

Shapes: N tracks, C = SAM's hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TrackTokenMlp(nn.Module):
    """The published module, an MLP over the mask token; its depth is a reconstruction.

    Args:
        width: Channels C.
        layers: Number of linear layers, with ReLU between them.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, mask_token: Tensor, track_token: Tensor | None) -> Tensor:
        """Compute the next track token (N, C) from the output mask token (N, C); the last track token is ignored."""
        state = mask_token
        for layer in self.layers[:-1]:
            state = torch.relu(layer(state))
        token: Tensor = self.layers[-1](state)
        return token


class TrackTokenInteraction(nn.Module):
    """The module of an earlier version, after MOTR's query interaction: both tokens, attention, two networks.

    Its attention has a single token, so that it amounts to two linear maps; parameters are named as released.

    Args:
        width: Channels C.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.linear_feat1, self.linear_feat2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm_feat = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, mask_token: Tensor, track_token: Tensor | None) -> Tensor:
        """Compute the next track token (N, C) from the output mask token and the last track token, (N, C) each."""
        both = mask_token if track_token is None else mask_token + track_token
        one = both.unsqueeze(1)  # (N, 1, C)
        attended, _ = self.self_attn(one, one, one, need_weights=False)
        state = self.norm1(both + attended.squeeze(1))
        state = self.norm2(state + self.linear2(torch.relu(self.linear1(state))))
        token: Tensor = self.norm_feat(both + self.linear_feat2(torch.relu(self.linear_feat1(state))))
        return token
