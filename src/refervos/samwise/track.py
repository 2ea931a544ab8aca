"""What SAMWISE has to remember for one sentence, held by the caller and not by the model."""

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
    """Online, what each adapter left of the last frames, for later ones to look back at.

    Attributes:
        adapters: How many adapters there are.
        limit: How many frames are kept.
        frames: For each adapter, the image tokens inside it in patches (P, S, A), oldest first.
        pictures: The last small frames (3, s, s), oldest first, where the model has movement features.
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
        """Frames kept."""
        return len(self.frames[-1])

    def append(self, adapter: int, inside: Tensor) -> None:
        """Keep what an adapter left of T frames, (T, P, S, A)."""
        self.frames[adapter].extend(inside)

    def clear(self) -> None:
        """Forget everything."""
        for kept in (*self.frames, self.pictures):
            kept.clear()

    def check_restored(self, config: SamwiseConfig, dtype: torch.dtype) -> None:
        """Check that windows that were read from a file are those of a model.

        Args:
            config: The model's shape.
            dtype: What it computes in.

        Raises:
            StateError: When they are not.
        """
        limit, online = config.clip_length - 1, config.time == "online"
        shapes = config.window_patches
        told = (self.adapters, self.limit, len(self.frames)) == (len(shapes), limit, len(shapes))
        check_state(told and all(kept.maxlen == limit for kept in self.frames), "a window has another length")
        check_state(len({len(kept) for kept in self.frames}) == 1, "windows are of different lengths")
        check_state(online or not (self.length or self.pictures), "a model that looks at clips has windows")
        for kept, (patches, tokens) in zip(self.frames, shapes, strict=True):
            for inside in kept:
                check_tensor(inside, "a window", (patches, tokens, config.adapter_width), dtype)
        check_state(self.pictures.maxlen == max(LAGS), "a window of pictures has another length")
        check_state(config.motion_features or not self.pictures, "a window has pictures that the model does not know")
        for picture in self.pictures:
            check_tensor(picture, "a picture", (3, config.sam2.image_size // 2, config.sam2.image_size // 2))


class Lookback(Protocol):
    """Online, what the adapters look back at, for a batch of N sentences about V videos."""

    def before(self, adapter: int) -> Tensor | None:
        """What an adapter left of the frames before: (V, P, W, S, A), after the first adapter (N, P, W, S, A).

        None where there is nothing.
        """
        ...

    def keep(self, adapter: int, inside: Tensor) -> None:
        """Keep what an adapter leaves of T frames, (V, T, P, S, A), after the first adapter (N, T, P, S, A)."""
        ...


@dataclass(kw_only=True)
class SamwiseTrack(CorrectableTrack):
    """One sentence and what has to be remembered for it.

    Attributes:
        ids: Token ids int64 (L,), without padding; always in main memory, as the verb marks are.
        verbs: bool (L,), the tokens that tell motion.
        windows: Online, what the adapters look back at; empty in clips.
        text: Text states (L, D) as the first adapter meets them, which no frame changes; None until they are needed.
        last_switch: Frame at which the CME last fired, 0 before.
        first_frame_prompt: Clicks, a box or a mask on the first frame, which is still to come.
    """

    ids: Tensor = field(metadata=IN_MAIN_MEMORY)
    verbs: Tensor = field(metadata=IN_MAIN_MEMORY)
    windows: AdapterWindows
    text: Tensor | None = None
    last_switch: int = 0
    first_frame_prompt: Prompt | None = None

    def restart(self) -> None:
        """Forget everything but the sentence."""
        self.memory.clear()
        self.windows.clear()
        self.frame = self.last_switch = 0
        self.last = self.before = None
        self.manually_corrected = False


@dataclass(frozen=True)
class TrackWindows:
    """The windows of N tracks, stacked where an adapter looks back; a ``Lookback``.

    Attributes:
        tracks: All with windows of the same length; N / V neighbours are about the same video.
        videos: V.
    """

    tracks: Sequence[SamwiseTrack]
    videos: int

    def before(self, adapter: int) -> Tensor | None:
        """See ``Lookback``.

        Raises:
            ConfigError: When the tracks look back at different numbers of frames.
        """
        # Where no sentence has changed the image yet, tracks about the same video have the same windows.
        sharing = 1 if adapter else len(self.tracks) // self.videos
        windows = [track.windows.frames[adapter] for track in self.tracks]
        lengths = {len(window) for window in windows}
        if len(lengths) != 1:
            raise ConfigError(f"the tracks look back at {sorted(lengths)} frames; online, a batch needs equal windows.")
        if lengths == {0}:
            return None
        each = [torch.stack(list(window), dim=1) for window in windows[::sharing]]  # (P, W, S, A)
        return each[0].unsqueeze(0) if len(each) == 1 else torch.stack(each)

    def keep(self, adapter: int, inside: Tensor) -> None:
        """See ``Lookback``; frames that fall out of a window are dropped."""
        sharing = len(self.tracks) // len(inside)
        for number, track in enumerate(self.tracks):
            track.windows.append(adapter, inside[number // sharing])
