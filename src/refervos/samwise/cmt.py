"""CMT, the Cross-Modal Temporal adapter: language and time inside the frozen encoders (SAMWISE paper, section 3.2).

Shapes: N tracks; T frames; W frames in a window of time; H x V image tokens of C channels a frame; R texts of L tokens
of D channels; A channels inside the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.attention import MultiheadAttention
from refervos.derived import Derived
from refervos.linear import linear, product

CPU_CHUNK = 16 * 2**20
"""Bytes of image tokens that a CPU adapts at once: more would cost memory and save no time."""


@dataclass(frozen=True)
class Adapted:
    """What an adapter says.

    Attributes:
        vision: To be added to the image tokens (N*T, H, V, C).
        text: To be added to the text tokens (R, L, D).
        inside: The image tokens inside the adapter (N, T, H, V, A): what later frames may look back at.
    """

    vision: Tensor
    text: Tensor
    inside: Tensor


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
        self.derived = Derived()

    def forward(
        self,
        vision: Tensor,
        text: Tensor,
        frames: int,
        keep: Tensor | None = None,
        *,
        past: Tensor | None = None,
        reach: int | None = None,
    ) -> Adapted:
        """What to add to the image tokens and to the text tokens.

        In clips (``reach`` is None) all frames see each other, and there is one text for them all: R = N. Online, each
        frame sees itself and up to ``reach - 1`` frames before it, and has a text of its own: R = N*T.

        Args:
            vision: Image tokens, channels last (N*T, H, V, C).
            text: Text tokens (R, L, D).
            frames: T.
            keep: bool (R, L), True where there is a text token; default: padding is looked at like text, as the
                released code does.
            past: Online, what this adapter left of the frames before (N, P, H, V, A), default none.
            reach: Online, how many frames a frame sees, itself included.

        Returns:
            The changes.
        """
        x = conv_norm_relu(vision, self.vision_down, self.vision_down_norm, self.derived)  # (N*T, H, V, A)
        x = x.unflatten(0, (-1, frames))  # (N, T, H, V, A)
        t = linear(text, self.text_down)  # (R, L, A)
        # Online the windows are those of clips that end with the frame which asks.
        windows = [x] if reach is None else windows_before(x, past, reach)  # (N, W, H, V, A) each
        asking = frames if reach is None else 1

        if self.changes_text:
            seen = torch.stack([window.mean(dim=1) for window in windows], dim=1)  # (N, R/N, H, V, A)
            text_delta = linear(t * self.text_to_vision(t, seen.flatten(2, 3).flatten(0, 1)), self.text_up)
        else:
            text_delta = torch.zeros_like(text)
        if not self.changes_vision:
            return Adapted(torch.zeros_like(vision), text_delta, x)
        mask = None if keep is None else keep[:, None, None, :]  # (R, 1, 1, L)
        rows = rows_at_once(windows[-1], 1 if self.hsa is None else self.hsa.patch)
        if rows >= x.shape[2]:
            return Adapted(self._change_vision(x, windows, asking, t, mask), text_delta, x)
        vision_delta = torch.empty_like(vision)
        for top in range(0, x.shape[2], rows):
            around = [window[:, :, top : top + rows] for window in windows]
            part = self._change_vision(x[:, :, top : top + rows], around, asking, t, mask)
            vision_delta[:, top : top + rows] = part
        return Adapted(vision_delta, text_delta, x)

    def _change_vision(
        self, x: Tensor, windows: Sequence[Tensor], asking: int, t: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Adapt some rows of the image, (N, T, h, V, A): what to add to them, (N*T, h, V, C)."""
        if self.hsa is not None:
            x = x + torch.cat([self.hsa(window, asking) for window in windows], dim=1)
        tokens = x.reshape(t.shape[0], -1, x.shape[-1])  # (R, N*T/R*h*V, A)
        y = tokens * self.vision_to_text(tokens, t, mask)
        y = y.reshape(-1, *x.shape[2:])  # (N*T, h, V, A)
        return conv_norm_relu(y, self.vision_up, self.vision_up_norm, self.derived)  # (N*T, h, V, C)


class HierarchicalSelectiveAttention(nn.Module):
    """HSA: self-attention over time inside patches, whose size in the image halves from adapter to adapter.

    Every P x P patch, over all frames of the window, is one sequence of W*P*P tokens.

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
        self.derived = Derived()

    def forward(self, window: Tensor, frames: int) -> Tensor:
        """Attend.

        Args:
            window: (N, W, H, V, A), with H and V multiples of the patch side.
            frames: T, how many of the window's last frames ask; the earlier ones are only looked at.

        Returns:
            What to add to the last T frames, (N, T, H, V, A).
        """
        count, length, height, cells_wide, width = window.shape
        side = self.patch
        rows, columns = height // side, cells_wide // side
        x = window.reshape(count, length, rows, side, columns, side, width)
        x = x.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, length, side * side, width)  # (N*rows*columns, W, P*P, A)
        time = self.derived.get(("time", length, x.device, x.dtype), [], lambda: time_embedding(length, width).to(x))
        tokens = self.norm(x + self.spatial_embedding + time.unsqueeze(1))  # (..., W, P*P, A)
        asking = tokens[:, -frames:].flatten(1, 2)  # (..., T*P*P, A)
        tokens = linear(self.attention(asking, tokens.flatten(1, 2)), self.linear)  # (..., T*P*P, A)
        tokens = tokens.reshape(count, rows, columns, frames, side, side, width)
        return tokens.permute(0, 3, 1, 4, 2, 5, 6).reshape(count, frames, height, cells_wide, width)


def windows_before(x: Tensor, past: Tensor | None, reach: int) -> list[Tensor]:
    """What each frame sees online: itself, last, and up to ``reach - 1`` frames before it.

    Args:
        x: The frames (N, T, ...).
        past: The frames before them (N, P, ...), or None.
        reach: Longest window.

    Returns:
        T windows (N, W, ...), W from 1 to ``reach``.
    """
    known = x if past is None else torch.cat([past, x], dim=1)  # (N, P + T, ...)
    ends = range(known.shape[1] - x.shape[1] + 1, known.shape[1] + 1)
    return [known[:, max(0, end - reach) : end] for end in ends]


def conv_norm_relu(
    x: Tensor, convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d, derived: Derived
) -> Tensor:
    """A 1x1 convolution, batch norm and ReLU, channels last.

    With fixed statistics the norm is folded into the convolution, which is then one linear layer.

    Args:
        x: (B, H, V, in).
        convolution: Without bias.
        norm: The batch norm; in training mode its statistics are the batch's.
        derived: Keeps the folded weights.

    Returns:
        (B, H, V, out).
    """
    weight = convolution.weight  # (out, in, 1, 1)
    if isinstance(convolution, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    if norm.training:
        mapped = F.conv2d(x.permute(0, 3, 1, 2), weight)  # (B, out, H, V)
        return torch.relu(norm(mapped)).permute(0, 2, 3, 1)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None

    def fold() -> tuple[Tensor, Tensor]:
        scale = norm.weight / torch.sqrt(variance + norm.eps)  # (out,), in the norm's own precision
        folded, bias = weight[:, :, 0, 0] * scale.unsqueeze(1), norm.bias - mean * scale
        return folded.to(x.dtype), bias.to(x.dtype)

    weights = [convolution.weight, norm.weight, norm.bias, mean, variance]
    return product(x, *derived.get(("folded", id(convolution), x.dtype), weights, fold), "relu")


def rows_at_once(window: Tensor, side: int) -> int:
    """How many of the H rows of image tokens (N, W, H, V, A) are adapted at once: all, but on a CPU only so many as
    fill ``CPU_CHUNK``; a multiple of the patch side.
    """
    height = window.shape[2]
    if window.device.type != "cpu" or window.requires_grad:
        return height
    row = window.element_size() * window.numel() // height
    return max(side, CPU_CHUNK // row // side * side)


def time_embedding(frames: int, width: int) -> Tensor:
    """Sine embedding of the frames 1..W of a window, normalised to a full turn at the last one (temperature 10000).

    Args:
        frames: W.
        width: Channels, even.

    Returns:
        float32 (W, width), sines at even and cosines at odd channels.
    """
    turns = torch.arange(1, frames + 1, dtype=torch.float32)
    turns = turns / (turns[-1] + 1e-6) * 2 * math.pi
    channel = torch.arange(width, dtype=torch.float32)
    angles = turns.unsqueeze(1) / 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)  # (W, width)
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)
