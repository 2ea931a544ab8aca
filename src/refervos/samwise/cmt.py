"""CMT, the Cross-Modal Temporal adapter: language and time inside the frozen encoders (SAMWISE paper, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from refervos.attention import MultiheadAttention


class CrossModalTemporalAdapter(nn.Module):
    """One adapter, placed after a Hiera stage and the text layers that run beside it.

    Args:
        vision_width: Channels C of the image stage.
        text_width: Channels D of the text encoder.
        width: Channels A inside the adapter.
        heads: Attention heads.
        patch: Side P of the patches of Hierarchical Selective Attention, or None to leave it out.
        text_to_visual: Whether the image tokens change; without, HSA has no effect either.
        visual_to_text: Whether the text tokens change.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        width: int,
        heads: int,
        patch: int | None,
        *,
        text_to_visual: bool = True,
        visual_to_text: bool = True,
    ) -> None:
        super().__init__()
        self.changes_vision, self.changes_text = text_to_visual, visual_to_text
        self.vision_down = nn.Conv2d(vision_width, width, kernel_size=1, bias=False)
        self.vision_down_norm = nn.BatchNorm2d(width)
        self.vision_up = nn.ConvTranspose2d(width, vision_width, kernel_size=1, bias=False)
        self.vision_up_norm = nn.BatchNorm2d(vision_width)
        self.text_down = nn.Linear(text_width, width, bias=False)
        self.text_up = nn.Linear(width, text_width, bias=False)
        self.vision_to_text = MultiheadAttention(width, heads)
        self.text_to_vision = MultiheadAttention(width, heads)
        self.hsa = HierarchicalSelectiveAttention(width, heads, patch) if patch else None

    def forward(self, vision: Tensor, text: Tensor, frames: int, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What to add to the image tokens and to the text tokens.

        Args:
            vision: Image tokens of N clips of T frames, channels last (N*T, H, W, C).
            text: Text tokens (N, L, D).
            frames: T.
            keep: bool (N, L), True where there is a text token; default: padding is looked at like text, as the
                released code does.

        Returns:
            Image delta (N*T, H, W, C) and text delta (N, L, D).
        """
        count, height, cells_wide = text.shape[0], vision.shape[1], vision.shape[2]
        mask = None if keep is None else keep[:, None, None, :]  # (N, 1, 1, L)
        x = self.vision_down(vision.permute(0, 3, 1, 2))  # (N*T, A, H, W)
        x = torch.relu(self.vision_down_norm(x)).permute(0, 2, 3, 1)  # (N*T, H, W, A)
        x = x.unflatten(0, (count, frames))  # (N, T, H, W, A)
        t = self.text_down(text)  # (N, L, A)

        if self.changes_text:
            seen = x.mean(dim=1).flatten(1, 2)  # (N, H*W, A)
            text_delta = self.text_up(t * self.text_to_vision(t, seen))
        else:
            text_delta = torch.zeros_like(text)
        if not self.changes_vision:
            return torch.zeros_like(vision), text_delta

        if self.hsa is not None:
            x = x + self.hsa(x)
        x = x.flatten(1, 3)  # (N, T*H*W, A)
        y = x * self.vision_to_text(x, t, mask)
        y = y.reshape(-1, height, cells_wide, y.shape[-1]).permute(0, 3, 1, 2)  # (N*T, A, H, W)
        vision_delta = torch.relu(self.vision_up_norm(self.vision_up(y))).permute(0, 2, 3, 1)  # (N*T, H, W, C)
        return vision_delta, text_delta


class HierarchicalSelectiveAttention(nn.Module):
    """HSA: self-attention over time inside patches, whose size in the image halves from adapter to adapter.

    Every P x P patch, over all T frames, is one sequence of T*P*P tokens.

    Args:
        width: Channels A.
        heads: Attention heads.
        patch: Patch side P, which must divide the grid.
    """

    def __init__(self, width: int, heads: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.spatial_embedding = nn.Parameter(torch.empty(patch * patch, width).normal_(std=0.02))
        self.norm = nn.LayerNorm(width)
        self.attention = MultiheadAttention(width, heads)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (N, T, H, W, A), with H and W multiples of the patch side.

        Returns:
            What to add to ``x``, same shape.
        """
        count, frames, height, cells_wide, width = x.shape
        side = self.patch
        rows, columns = height // side, cells_wide // side
        x = x.reshape(count, frames, rows, side, columns, side, width)
        x = x.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, frames, side * side, width)  # (N*rows*columns, T, P*P, A)
        time = time_embedding(frames, width).to(x)  # (T, A)
        tokens = self.norm(x + self.spatial_embedding + time.unsqueeze(1)).flatten(1, 2)  # (..., T*P*P, A)
        tokens = self.linear(self.attention(tokens, tokens))
        tokens = tokens.reshape(count, rows, columns, frames, side, side, width)
        return tokens.permute(0, 3, 1, 4, 2, 5, 6).reshape(count, frames, height, cells_wide, width)


def time_embedding(frames: int, width: int) -> Tensor:
    """Sine embedding of the frames 1..T of a clip, normalised to a full turn at the last one (temperature 10000).

    Args:
        frames: T.
        width: Channels, even.

    Returns:
        float32 (T, width), sines at even and cosines at odd channels.
    """
    turns = torch.arange(1, frames + 1, dtype=torch.float32)
    turns = turns / (turns[-1] + 1e-6) * 2 * math.pi
    channel = torch.arange(width, dtype=torch.float32)
    angles = turns.unsqueeze(1) / 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)  # (T, width)
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)
