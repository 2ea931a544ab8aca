"""State of a SAMWISE track, held by the caller and not by the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from refervos.errors import ConfigError
from refervos.prompts import Prompt
from refervos.sam2.correction import CorrectableTrack
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.motion import LAGS
from refervos.session.state_files import IN_MAIN_MEMORY, check_state, check_tensor


@dataclass
class AdapterWindows:
    """Cached adapter tokens of the last frames, which later frames attend to online.

    Attributes:
        adapters: Number of adapters.
        limit: Number of frames kept.
        frames: For each adapter, its image tokens in patches (P, S, A), oldest frame first.
        pictures: The last small frames (3, s, s), oldest first, if the model has movement features.
    """

    adapters: int
    limit: int
    frames: list[deque[Tensor]] = field(init=False)
    pictures: deque[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.pictures = deque(maxlen=max(LAGS))
        self.frames = [deque(maxlen=self.limit) for _ in range(self.adapters)]

    @property
    def length(self) -> int:
        """Number of frames in the windows."""
        return len(self.frames[-1])

    @property
    def lengths(self) -> tuple[int, int]:
        """Numbers of frames in the windows and of small frames, which must agree within a batch."""
        return self.length, len(self.pictures)

    def append(self, adapter: int, inside: Tensor) -> None:
        """Append an adapter's tokens of T frames, (T, P, S, A)."""
        self.frames[adapter].extend(inside)

    def clear(self) -> None:
        """Empty the windows."""
        for kept in (*self.frames, self.pictures):
            kept.clear()

    def check_restored(self, config: SamwiseConfig, dtype: torch.dtype) -> None:
        """Check that windows read from a file fit a model.

        Args:
            config: Configuration of the model.
            dtype: Type of its weights and activations.

        Raises:
            StateError: When they do not.
        """
        limit, online = config.clip_length - 1, config.time == "online"
        shapes = config.window_patches
        fits = (self.adapters, self.limit, len(self.frames)) == (len(shapes), limit, len(shapes))
        check_state(fits and all(kept.maxlen == limit for kept in self.frames), "a window has another length")
        check_state(len({len(kept) for kept in self.frames}) == 1, "windows have different lengths")
        check_state(online or not (self.length or self.pictures), "a model that processes clips has windows")
        for kept, (patches, tokens) in zip(self.frames, shapes, strict=True):
            for inside in kept:
                check_tensor(inside, "a window", (patches, tokens, config.adapter_width), dtype)
        check_state(self.pictures.maxlen == max(LAGS), "a window of small frames has another length")
        check_state(
            config.motion_features or not self.pictures, "a window has small frames, which the model does not use"
        )
        for picture in self.pictures:
            check_tensor(picture, "a small frame", (3, config.sam2.image_size // 2, config.sam2.image_size // 2))


class Lookback(Protocol):
    """Earlier frames that the adapters attend to online, for a batch of N sentences about V videos."""

    def before(self, adapter: int) -> Tensor | None:
        """Return an adapter's tokens of earlier frames, or None without any.

        They are (V, P, W, S, A) for the first adapter, (N, P, W, S, A) for later ones.
        """
        ...

    def keep(self, adapter: int, inside: Tensor) -> None:
        """Store an adapter's tokens of T frames, (V, T, P, S, A), after the first adapter (N, T, P, S, A)."""
        ...


@dataclass(kw_only=True)
class SamwiseTrack(CorrectableTrack):
    """State of one tracked sentence.

    Attributes:
        ids: Token ids int64 (L,), without padding; always in main memory, like ``verbs``.
        verbs: bool (L,), tokens of motion words.
        windows: Online, earlier frames for the adapters; empty in clips.
        text: Text states (L, D) at the input of the first adapter, which do not depend on frames; None until needed.
        last_switch: Frame of the last CME switch, 0 without one.
        first_frame_prompt: Clicks, a box or a mask on the first frame; None once that frame has been seen.
    """

    ids: Tensor = field(metadata=IN_MAIN_MEMORY)
    verbs: Tensor = field(metadata=IN_MAIN_MEMORY)
    windows: AdapterWindows
    text: Tensor | None = None
    last_switch: int = 0
    first_frame_prompt: Prompt | None = None

    def restart(self) -> None:
        """Reset everything but the sentence."""
        self.memory.clear()
        self.windows.clear()
        self.frame = self.last_switch = 0
        self.last = self.before = None
        self.manually_corrected = False


@dataclass(frozen=True)
class TrackWindows:
    """``Lookback`` over the windows of N tracks.

    Attributes:
        tracks: The tracks, all with windows of the same length; N / V adjacent tracks belong to the same video.
        videos: Number of videos V.
    """

    tracks: Sequence[SamwiseTrack]
    videos: int

    def before(self, adapter: int) -> Tensor | None:
        """See ``Lookback``.

        Raises:
            ConfigError: When the tracks have windows of different lengths.
        """
        # Before the first adapter, tracks of the same video have the same windows.
        sharing = 1 if adapter else len(self.tracks) // self.videos
        windows = [track.windows.frames[adapter] for track in self.tracks]
        lengths = {len(window) for window in windows}
        if len(lengths) != 1:
            raise ConfigError(
                f"the tracks have windows of {sorted(lengths)} frames; online, a batch needs windows of equal length."
            )
        if lengths == {0}:
            return None
        stacked = [torch.stack(list(window), dim=1) for window in windows[::sharing]]  # (P, W, S, A) each
        return stacked[0].unsqueeze(0) if len(stacked) == 1 else torch.stack(stacked)

    def pictures(self) -> Tensor | None:
        """Return the earlier small frames (V, P, 3, s, s), or None without any; tracks of a video share them."""
        sharing = len(self.tracks) // self.videos
        known = [track.windows.pictures for track in self.tracks[::sharing]]
        return torch.stack([torch.stack(list(pictures)) for pictures in known]) if known[0] else None

    def keep_pictures(self, small: Tensor) -> None:
        """Store small frames (V, T, 3, s, s)."""
        sharing = len(self.tracks) // self.videos
        for number, track in enumerate(self.tracks):
            track.windows.pictures.extend(small[number // sharing])

    def keep(self, adapter: int, inside: Tensor) -> None:
        """See ``Lookback``; frames beyond the window are dropped."""
        sharing = len(self.tracks) // len(inside)
        for number, track in enumerate(self.tracks):
            track.windows.append(adapter, inside[number // sharing])
