"""CMT, the Cross-Modal Temporal adapter: language and time inside the frozen encoders (SAMWISE paper, section 3.2).

Inside an adapter the image tokens lie in the order of HSA's patches, so that they are moved once on the way in and once
on the way out.

Shapes: N tracks about V videos; T frames; W frames in a window of time; H x B image tokens of C channels a frame, in P
patches of S tokens; R texts of L tokens of D channels; A channels inside the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.derived import Derived
from refervos.ops.linear import laid_out, linear, product
from refervos.ops.multihead_attention import MultiheadAttention
from refervos.ops.parts import in_parts
from refervos.ops.precision import BatchNorm2d

CPU_CHUNK = 16 * 2**20
"""Bytes of image tokens that a CPU adapts at once: more would cost memory and save no time."""


@dataclass(frozen=True)
class Adapted:
    """What an adapter says.

    Attributes:
        vision: To be added to the image tokens (N*T, H, B, C).
        text: To be added to the text tokens (R, L, D).
        inside: The image tokens inside the adapter (V, T, P, S, A): what later frames may look back at.
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
        patch: Side of the patches of Hierarchical Selective Attention, or None to leave it out.
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
        self.vision_down_norm = BatchNorm2d(width)
        self.vision_up = nn.ConvTranspose2d(width, vision_width, kernel_size=1, bias=False)
        self.vision_up_norm = BatchNorm2d(vision_width)
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
        motion: Tensor | None = None,
    ) -> Adapted:
        """What to add to the image tokens and to the text tokens.

        In clips (``reach`` is None) all frames see each other, and there is one text for them all: R = N. Online, each
        frame sees itself and up to ``reach - 1`` frames before it, and has a text of its own: R = N*T. Where image
        tokens have not met a sentence yet there are those of V videos, N / V neighbouring tracks about each: what does
        not depend on the sentence is then computed once.

        Args:
            vision: Image tokens, channels last (V*T, H, B, C).
            text: Text tokens (R, L, D).
            frames: T.
            keep: bool (R, L), True where there is a text token; default: padding is looked at like text, as the
                released code does.
            past: Online, what this adapter left of the frames before (V, P, W, S, A), W < ``reach``, default none.
            reach: Online, how many frames a frame sees, itself included.
            motion: Movement features to be added inside (V*T, H, B, A), default none.

        Returns:
            The changes.
        """
        height, width = vision.shape[1:3]
        side = 1 if self.hsa is None else self.hsa.side
        inside = conv_norm_relu(vision, self.vision_down, self.vision_down_norm, self.derived)  # (V*T, H, B, A)
        inside = inside if motion is None else inside + motion
        inside = into_patches(inside, side).unflatten(0, (-1, frames))  # (V, T, P, S, A)
        x = inside.transpose(1, 2)  # (V, P, T, S, A)
        t = linear(text, self.text_down)  # (R, L, A)
        # Online the windows are those of clips that end with the frame which asks.
        windows = [x] if reach is None else windows_before(x, past, reach)  # (V, P, W, S, A) each
        asking = frames if reach is None else 1
        tracks = t.shape[0] // len(windows)

        if self.changes_text:
            seen = torch.stack([window.mean(dim=2) for window in windows], dim=1).flatten(2, 3)  # (V, R/N, P*S, A)
            key, value = (
                for_each_sentence(part, tracks).flatten(0, 1)  # (R, P*S, A) each
                for part in self.text_to_vision.keys_and_values(seen)
            )
            attended = self.text_to_vision.attend(self.text_to_vision.queries(t), key, value)
            text_delta = linear(t * attended, self.text_up)
        else:
            text_delta = torch.zeros_like(text)
        if not self.changes_vision:
            return Adapted(vision.new_zeros(tracks * frames, *vision.shape[1:]), text_delta, inside)
        mask = None if keep is None else keep[:, None, None, :]  # (R, 1, 1, L)
        columns = width // side  # of patches; some rows of them at a time
        some = max(1, patches_at_once(windows[-1]) // columns)
        if some * columns >= x.shape[1]:
            change = self._change_vision(x, windows, asking, t, mask)  # (N*T, P, S, C)
            return Adapted(out_of_patches(change, side, height, width), text_delta, inside)
        vision_delta = vision.new_empty(tracks * frames, *vision.shape[1:])  # (N*T, H, B, C)
        for top in range(0, height // side, some):
            part = slice(top * columns, (top + some) * columns)
            around = [window[:, part] for window in windows]
            change = self._change_vision(x[:, part], around, asking, t, mask)
            rows = vision_delta[:, top * side : (top + some) * side]
            rows.copy_(out_of_patches(change, side, rows.shape[1], width))
        return Adapted(vision_delta, text_delta, inside)

    def _change_vision(
        self, x: Tensor, windows: Sequence[Tensor], asking: int, t: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Adapt some patches of the image, (V, p, T, S, A): what to add to them, (N*T, p, S, C)."""
        if self.hsa is not None:
            looked = [self.hsa(window, asking) for window in windows]
            x = x + (looked[0] if len(looked) == 1 else torch.cat(looked, dim=2))
        texts = len(windows)  # of a track
        tokens = x.transpose(1, 2).reshape(x.shape[0], texts, -1, x.shape[-1])  # (V, R/N, N*T/R*p*S, A)
        queries, tokens = (
            for_each_sentence(part, t.shape[0] // texts).flatten(0, 1)  # (R, N*T/R*p*S, A) each
            for part in (self.vision_to_text.queries(tokens), tokens)
        )
        y = tokens * self.vision_to_text.attend(queries, *self.vision_to_text.keys_and_values(t), mask)
        y = y.reshape(-1, x.shape[1], *x.shape[3:])  # (N*T, p, S, A)
        return conv_norm_relu(y, self.vision_up, self.vision_up_norm, self.derived)  # (N*T, p, S, C)


def for_each_sentence(videos: Tensor, count: int) -> Tensor:
    """Repeat what belongs to V videos for their sentences: (V, ...) -> (count, ...), without copying for V = 1."""
    repeats = count // videos.shape[0]
    return videos.unsqueeze(1).expand(-1, repeats, *videos.shape[1:]).flatten(0, 1)


class HierarchicalSelectiveAttention(nn.Module):
    """HSA: self-attention over time inside patches, whose size in the image halves from adapter to adapter.

    Every patch, over all frames of the window, is one sequence of W*S tokens.

    Args:
        width: Channels A.
        heads: Attention heads.
        side: Of a patch, which must divide the grid.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.spatial_embedding = nn.Parameter(torch.empty(side * side, width).normal_(std=0.02))
        self.norm = nn.LayerNorm(width)
        self.attention = MultiheadAttention(width, heads)
        self.linear = nn.Linear(width, width)
        self.derived = Derived()

    def forward(self, window: Tensor, frames: int) -> Tensor:
        """Attend.

        Args:
            window: (V, P, W, S, A).
            frames: T, how many of the window's last frames ask; the earlier ones are only looked at.

        Returns:
            What to add to the last T frames, (V, P, T, S, A).
        """
        tokens = self.norm(window + self._positions(window)).flatten(0, 1)  # (V*P, W, S, A)
        asking = tokens[:, -frames:].flatten(1, 2)  # (V*P, T*S, A)
        looked = linear(self.attention(asking, tokens.flatten(1, 2)), self.linear)  # (V*P, T*S, A)
        return looked.reshape(*window.shape[:2], frames, *window.shape[3:])

    def _positions(self, window: Tensor) -> Tensor:
        """Embedding of a token's place in its patch and of its time in the window, (W, S, A)."""
        length = window.shape[2]

        def compute() -> Tensor:
            time = time_embedding(length, window.shape[-1]).to(window)
            return self.spatial_embedding + time.unsqueeze(1)

        return self.derived.get(("positions", length, window.dtype), [self.spatial_embedding], compute)


def into_patches(image: Tensor, side: int) -> Tensor:
    """Put image tokens into the order of square patches: (n, height, width, A) -> (n, P, side * side, A)."""
    batch, height, width, channels = image.shape
    cut = image.reshape(batch, height // side, side, width // side, side, channels)
    return cut.transpose(2, 3).reshape(batch, -1, side * side, channels)


def out_of_patches(patches: Tensor, side: int, height: int, width: int) -> Tensor:
    """Put them back into rows and columns: (n, P, side * side, C) -> (n, height, width, C)."""
    batch, channels = patches.shape[0], patches.shape[-1]
    cut = patches.reshape(batch, height // side, width // side, side, side, channels)
    return cut.transpose(2, 3).reshape(batch, height, width, channels)


def windows_before(x: Tensor, past: Tensor | None, reach: int) -> list[Tensor]:
    """What each frame sees online: itself, last, and up to ``reach - 1`` frames before it.

    Args:
        x: The frames (V, P, T, ...).
        past: The frames before them (V, P, W, ...), W < ``reach``, or None.
        reach: Longest window.

    Returns:
        T windows (V, P, W, ...), W from 1 to ``reach``.
    """
    known = x if past is None else torch.cat([past, x], dim=2)  # (N, P, W + T, ...)
    if x.shape[2] == 1:  # sees all of it: no size is needed as a number, so that W stays open in a graph
        return [known]
    ends = range(known.shape[2] - x.shape[2] + 1, known.shape[2] + 1)
    return [known[:, :, max(0, end - reach) : end] for end in ends]


def conv_norm_relu(
    x: Tensor, convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d, derived: Derived
) -> Tensor:
    """A 1x1 convolution, batch norm and ReLU, channels last.

    With fixed statistics the norm is folded into the convolution, which is then one linear layer.

    Args:
        x: (n, H, B, in).
        convolution: Without bias.
        norm: The batch norm; in training mode its statistics are the batch's.
        derived: Keeps the folded weights.

    Returns:
        (n, H, B, out).
    """
    weight = convolution.weight  # (out, in, 1, 1)
    if isinstance(convolution, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    if norm.training:
        mapped = F.conv2d(x.permute(0, 3, 1, 2), weight)  # (n, out, H, B)
        return torch.relu(norm(mapped)).permute(0, 2, 3, 1)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None

    def fold() -> tuple[Tensor, Tensor]:
        scale = norm.weight / torch.sqrt(variance + norm.eps)  # (out,), in the norm's own precision
        folded, bias = weight[:, :, 0, 0] * scale.unsqueeze(1), norm.bias - mean * scale
        return laid_out(folded.to(x.dtype)), bias.to(x.dtype)

    weights = [convolution.weight, norm.weight, norm.bias, mean, variance]
    return product(x, *derived.get(("folded", id(convolution), x.dtype), weights, fold), "relu")


def patches_at_once(window: Tensor) -> int:
    """How many of the P patches of image tokens (V, P, W, S, A) are adapted at once: all, but on a CPU only so many as
    fill ``CPU_CHUNK``.
    """
    patches = window.shape[1]
    if not in_parts(window):
        return patches
    return max(1, CPU_CHUNK * patches // (window.element_size() * window.numel()))


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
