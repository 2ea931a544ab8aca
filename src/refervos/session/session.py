"""Sessions: frames in, one segmentation per frame out. All state of a stream is here, none on the model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refervos.errors import ConfigError, FrameError, PromptError, RefervosError, StateError
from refervos.ops.borders import Borders, FrameGuide
from refervos.placement import Placement, as_rgb, download
from refervos.prompts import Prompt
from refervos.segmentation import Segmentation
from refervos.segmenter import FramePrediction, Segmenter, check_numbers
from refervos.session.scene_changes import FrameChanges, Picture
from refervos.session.state_files import IN_MAIN_MEMORY, check_state, check_tensor, load_state, save_state
from refervos.text.vocabulary import unknown_words, warn_of_words

Item = TypeVar("Item")


@dataclass
class _Followed:
    """A track of the session: its prompt and the model's state for it."""

    prompt: Prompt
    state: Any


class _FrameOutput(NamedTuple):
    """Output of a model for one frame and N tracks, in main memory; see ``Segmentation``."""

    masks: npt.NDArray[np.bool_]
    presence: npt.NDArray[np.float32]
    switched: npt.NDArray[np.bool_]
    logits: npt.NDArray[np.float32] | None


OnCut = Literal["ignore", "forget"]

OnRepeat = Literal["answer", "reuse"]


@dataclass
class StreamCounts:
    """Counts of irregularities in a session's stream.

    Attributes:
        cuts: Scene cuts, if the session detects them.
        repeats: Repeated frames, likewise.
        gaps: Gaps declared with ``mark_gap``.
    """

    cuts: int = 0
    repeats: int = 0
    gaps: int = 0


@dataclass
class _State:
    """All state of a session.

    Attributes:
        image: The last frame, uint8 (3, H, W), kept when borders follow the frame.
        past: What the model keeps of the last frames, see ``Segmenter.prepare``.
    """

    tracks: dict[int, _Followed]
    changes: FrameChanges
    counts: StreamCounts
    frame_index: int = 0
    next_track: int = 0
    placement: Placement | None = None
    last: Segmentation | None = None
    image: Tensor | None = field(default=None, metadata=IN_MAIN_MEMORY)
    past: list[Any] = field(default_factory=list, metadata=IN_MAIN_MEMORY)


class Session:
    """One stream and the tracks followed in it.

    Frames are passed to ``step`` (one frame, segmented immediately), ``clip`` (several frames, which the model may
    process jointly) or ``stream`` (any iterable, processed in clips). Any number of sessions can run on one model.

    Args:
        model: The model; it is not modified.
        prompts: Objects to follow from the first frame on; more can be added later.
        keep_logits: Also return mask logits at the frame's size.
        on_cut: ``forget`` detects scene cuts and clears the tracks' memory at each, so that every sentence is grounded
            again; ``ignore`` detects none.
        on_repeat: ``reuse`` detects frames that repeat the previous one and returns the previous masks for them,
            without running the model or filling its memory; ``answer`` detects none and segments every frame.
        borders: ``frame`` aligns mask borders with the edges of the frame (see ``refervos.ops.borders``), ``bilinear``
            upsamples masks as published; default as configured in the model.
        border_cells: Side of the neighbourhood used at borders, in cells: 3 is fast, 7 is finer.

    Warns:
        UnknownWordsWarning: When a sentence has words on which a model with a closed vocabulary was never trained; also
            in ``add``, ``add_missing`` and ``set_prompt``, once for each word.

    Raises:
        ConfigError: When the model is in training mode, or an option has an unknown value.
        PromptError: When the model does not accept a prompt.
    """

    def __init__(
        self,
        model: Segmenter[Any],
        prompts: Iterable[Prompt | str] = (),
        *,
        keep_logits: bool = False,
        on_cut: OnCut = "ignore",
        on_repeat: OnRepeat = "answer",
        borders: Borders | None = None,
        border_cells: int = 3,
    ) -> None:
        if getattr(model, "training", False):
            raise ConfigError("the model is in training mode; call model.eval() before opening a session.")
        if on_cut not in get_args(OnCut):
            raise ConfigError(f"on_cut is {on_cut!r}; it must be 'ignore' or 'forget'.")
        if on_repeat not in get_args(OnRepeat):
            raise ConfigError(f"on_repeat is {on_repeat!r}; it must be 'answer' or 'reuse'.")
        if borders not in (None, *get_args(Borders)):
            raise ConfigError(f"borders is {borders!r}; it must be 'bilinear' or 'frame'.")
        if border_cells < 1 or border_cells % 2 == 0:
            raise ConfigError(f"border_cells is {border_cells}; it must be odd, such as 3.")
        self.model = model
        self.keep_logits = keep_logits
        self.borders: Borders = getattr(model, "borders", "bilinear") if borders is None else borders
        self.border_cells = border_cells
        self.on_cut, self.on_repeat = on_cut, on_repeat
        self._state = _State({}, FrameChanges(), StreamCounts())
        self._warned: set[str] = set()
        followed = [self._begin(prompt) for prompt in prompts]
        self._warn_of_unknown_words(followed)

    @property
    def frame_index(self) -> int:
        """Number of frames segmented so far."""
        return self._state.frame_index

    @property
    def counts(self) -> StreamCounts:
        """Counts of cuts, repeats and gaps so far."""
        return self._state.counts

    @property
    def past(self) -> Sequence[Any]:
        """What the model keeps of the last frames of the scene; empty for most models."""
        return self._state.past

    @property
    def _tracks(self) -> dict[int, _Followed]:
        return self._state.tracks

    @property
    def expressions(self) -> dict[int, str]:
        """Description of each track's prompt, by track number."""
        return {number: track.prompt.description for number, track in self._tracks.items()}

    def add(self, prompt: Prompt | str) -> int:
        """Follow one more object from the next frame on.

        Args:
            prompt: A sentence, or a ``Prompt`` with one or with clicks, a box or a mask.

        Returns:
            The track's number, never reused in this session.

        Raises:
            PromptError: When the model does not accept the prompt.
        """
        number = self._begin(prompt)
        self._warn_of_unknown_words([number])
        return number

    def _begin(self, prompt: Prompt | str) -> int:
        """Start a track and return its number."""
        prompt = _as_prompt(prompt)
        return self.follow(prompt, self.model.begin(prompt))

    def _warn_of_unknown_words(self, tracks: Sequence[int]) -> None:
        """Warn if the prompts of tracks have words that the model was never trained on, once about each word."""
        find = getattr(self.model, "unknown_words", None)  # a model of one's own may lack it
        if find is None:
            return
        unknown = [find(self._tracks[number].prompt.expression or "") for number in tracks]
        new = {word for words in unknown for word in words} - self._warned
        if new:
            self._warned |= new
            warn_of_words(unknown, stacklevel=3)

    def follow(self, prompt: Prompt, state: Any) -> int:
        """Follow an object from the next frame on for which the model has already started a track.

        Args:
            prompt: Description of the object.
            state: A new track of this session's model.

        Returns:
            The track's number, never reused in this session.
        """
        number = self._state.next_track
        self._tracks[number] = _Followed(prompt, state)
        self._state.next_track += 1
        return number

    def add_missing(self, prompts: Iterable[Prompt | str]) -> list[int]:
        """Add the prompts that no track has yet, for instance in a restored session.

        Args:
            prompts: Sentences and prompts. A prompt identical to a track's is not added; a prompt given twice gets two
                tracks.

        Returns:
            The numbers of the new tracks.

        Raises:
            PromptError: When the model does not accept one of them.
        """
        followed = [track.prompt for track in self._tracks.values()]
        new = []
        for prompt in map(_as_prompt, prompts):
            same = next((known for known in followed if known.equals(prompt)), None)
            if same is None:
                new.append(self._begin(prompt))
            else:
                followed.remove(same)
        self._warn_of_unknown_words(new)
        return new

    def drop(self, track: int) -> None:
        """Stop following a track.

        Raises:
            PromptError: When there is no such track.
        """
        self._followed(track)
        del self._tracks[track]

    def set_prompt(self, track: int, prompt: Prompt | str) -> None:
        """Replace a track's prompt from the next frame on; its number and its memory are kept.

        Args:
            track: Its number.
            prompt: The new sentence.

        Raises:
            PromptError: When there is no such track, or the model does not accept the prompt.
        """
        followed, prompt = self._followed(track), _as_prompt(prompt)
        self.model.set_prompt(followed.state, prompt)
        followed.prompt = prompt
        self._warn_of_unknown_words([track])

    def correct(
        self,
        track: int,
        *,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> Segmentation:
        """Refine the last frame's mask with points, a box or a mask, and store the frame as a conditioning frame.

        Clicks on one frame add up. The sentence still guides the track afterwards. When the mask moves to another
        object, the track's memory of the old object is cleared.

        Args:
            track: The track's number.
            points: Clicks as x, y in pixels of the frame, (P, 2).
            labels: 1 for a click on the object, 0 for one off it, length P; default all 1.
            box: x0, y0, x1, y1 in pixels of the frame.
            mask: bool (H, W) at the frame's size.

        Returns:
            The last frame's segmentation with this track's mask replaced.

        Raises:
            PromptError: When there is no such track or no frame yet, or the prompt does not fit the frame.
        """
        followed = self._followed(track)
        prompt = Prompt(points=points, labels=labels, box=box, mask=mask)
        placement = self._state.placement
        if placement is None:
            raise PromptError("there is nothing to correct before the first frame; give a frame first.")
        return self._replace_track(track, self.model.correct(followed.state, prompt, placement))

    def undo(self, track: int) -> Segmentation | None:
        """Undo a track's last correction; call again to undo the one before it.

        Args:
            track: The track's number.

        Returns:
            The last frame's segmentation before the correction, if the last frame is the corrected one; the session is
            then as if it had not been corrected. Otherwise None: the corrected frame is removed from memory, and the
            frames after it stay as they were segmented.

        Raises:
            PromptError: When there is no such track or no correction.
        """
        prediction = self.model.undo(self._followed(track).state)
        return None if prediction is None else self._replace_track(track, prediction)

    def mark_gap(self) -> None:
        """Declare that frames were lost before the next one, for instance while a camera was disconnected."""
        self.counts.gaps += 1
        for followed in self._tracks.values():
            self.model.mark_gap(followed.state)

    def rename(self, track: int, prompt: Prompt | str) -> None:
        """Call ``set_prompt``, the new name of this method."""
        warnings.warn("Session.rename is now Session.set_prompt.", DeprecationWarning, stacklevel=2)
        self.set_prompt(track, prompt)

    def note_gap(self) -> None:
        """Call ``mark_gap``, the new name of this method."""
        warnings.warn("Session.note_gap is now Session.mark_gap.", DeprecationWarning, stacklevel=2)
        self.mark_gap()

    def _followed(self, track: int) -> _Followed:
        if track not in self._tracks:
            raise PromptError(f"there is no track {track}; the tracks are {sorted(self._tracks)}.")
        return self._tracks[track]

    def step(self, frame: Any) -> Segmentation:
        """Segment one frame, before the next one is known.

        Args:
            frame: uint8 RGB (H, W, 3) or gray (H, W), array or tensor, of any size.

        Returns:
            The masks at the frame's size.

        Raises:
            FrameError: When the frame is not such an image.
            CheckpointError: When the model's output contains NaN.
        """
        return self.clip([frame])[0]

    def clip(self, frames: Sequence[Any]) -> list[Segmentation]:
        """Segment consecutive frames, which the model may process jointly (eight in the published protocol).

        Args:
            frames: Frames as for ``step``; sizes may differ.

        Returns:
            One segmentation per frame.

        Raises:
            FrameError: When a frame is not an 8-bit image, or there are no frames; the session has not changed.
            PromptError: When a new track's click, box or mask does not fit the first frame: the track is dropped, and
                nothing else has changed, so that the same frames can be passed again.
            CheckpointError: When the model's output contains NaN.
        """
        if len(frames) == 0:
            raise FrameError("the clip has no frames; give at least one.")
        images = [as_rgb(frame) for frame in frames]
        self._drop_misplaced((images[0].shape[1], images[0].shape[2]))
        segmentations: list[Segmentation] = []
        for scene in self._split_scenes(images):
            segmentations += self._segment_scene(*scene)
        return segmentations

    def _drop_misplaced(self, frame_size: tuple[int, int]) -> None:
        """Drop a new track whose prompt does not fit its first frame: it would block all other tracks forever."""
        for number, followed in list(self._tracks.items()):
            if not followed.prompt.geometric:
                continue
            try:
                self.model.check(followed.state, frame_size)
            except PromptError as error:
                self.drop(number)
                raise PromptError(f"{error} Track {number} is dropped.") from error

    def _split_scenes(self, images: list[Tensor]) -> Iterator[tuple[list[Tensor], bool, bool]]:
        """Split a clip where a scene ends or a frame repeats the previous one.

        Yields:
            Frames; whether the first of them starts a new scene; whether they are one repeated frame.
        """
        if self.on_cut == "ignore" and self.on_repeat == "answer":
            yield images, False, False
            return
        begun: list[Tensor] = []
        after_cut = False
        for image in images:
            change = self._state.changes.update(image)
            cut = change.cut and self.on_cut == "forget"
            repeated = change.repeated and self.on_repeat == "reuse"
            if (cut or repeated) and begun:
                yield begun, after_cut, False
                begun, after_cut = [], False
            if repeated:
                yield [image], False, True
            else:
                begun.append(image)
                after_cut = after_cut or cut
        if begun:
            yield begun, after_cut, False

    def _segment_scene(self, images: list[Tensor], after_cut: bool, repeated: bool) -> list[Segmentation]:
        """Segment frames of one scene."""
        last = self._state.last
        if repeated:
            self.counts.repeats += 1
            if last is not None and last.track_ids == tuple(self._tracks):
                none = np.zeros_like(last.switched)
                again = replace(
                    last,
                    frame_index=self.frame_index,
                    expressions=tuple(self.expressions.values()),
                    switched=none,
                    cut=False,
                    repeated=True,
                )
                return [self._set_last(again)]
        if after_cut:
            self.counts.cuts += 1
            self._state.past.clear()
            for followed in self._tracks.values():
                self.model.restart(followed.state)
        placements = [self.model.placement((image.shape[1], image.shape[2])) for image in images]
        pixels = self.model.prepare(images, placements, self._state.past)
        if not self._tracks:
            pairs = zip(images, placements, strict=True)
            return [self._segmentation(None, *pair, after_cut and not at) for at, pair in enumerate(pairs)]
        states = [track.state for track in self._tracks.values()]
        predictions = self.model.segment_clip(pixels, states, placements)
        frames = zip(predictions, images, placements, strict=True)
        return [self._segmentation(*frame, after_cut and not at) for at, frame in enumerate(frames)]

    def stream(self, frames: Iterable[Any], clip_length: int | None = None) -> Iterator[Segmentation]:
        """Segment an iterable of frames, clip by clip.

        Args:
            frames: Frames as for ``step``; read only as far as needed.
            clip_length: Frames per clip, default the model's; 1 segments each frame before reading the next.

        Yields:
            One segmentation per frame, in order.

        Raises:
            ConfigError: When ``clip_length`` is below 1.
        """
        for clip in self.chunks(frames, clip_length):
            yield from self.clip(clip)

    def chunks(self, frames: Iterable[Item], clip_length: int | None = None) -> Iterator[list[Item]]:
        """Split an iterable into clips, reading no further than the current clip; the last may be shorter.

        Args:
            frames: Frames, or items that contain them.
            clip_length: Items per clip, default the model's.

        Yields:
            Non-empty clips.

        Raises:
            ConfigError: When ``clip_length`` is below 1.
        """
        length = self.model.clip_length if clip_length is None else clip_length
        if length < 1:
            raise ConfigError(f"clip_length is {length}; it must be at least 1.")
        source = iter(frames)
        while clip := list(islice(source, length)):
            yield clip

    def _segmentation(
        self, prediction: FramePrediction | None, image: Tensor, placement: Placement, cut: bool = False
    ) -> Segmentation:
        """Convert a prediction to a segmentation at the frame's size and record it as the last one."""
        self._state.placement = placement
        self._state.image = image if self.borders == "frame" else None
        masks, presence, switched, logits = self._download(prediction, placement)
        return self._set_last(
            Segmentation(
                frame_index=self.frame_index,
                track_ids=tuple(self._tracks),
                expressions=tuple(self.expressions.values()),
                masks=masks,
                presence=presence,
                switched=switched,
                logits=logits,
                cut=cut,
            )
        )

    def _download(self, prediction: FramePrediction | None, placement: Placement) -> _FrameOutput:
        """Resize a prediction for N tracks to the frame and copy it to main memory in a single transfer."""
        if prediction is None:
            none = np.zeros((0, *placement.frame_size), dtype=np.float32)
            return _FrameOutput(none > 0, none[:, 0, 0], none[:, 0, 0] > 0, none if self.keep_logits else None)
        image, score = self._state.image, prediction.score
        guide = None if image is None else FrameGuide(image, self.border_cells)
        presences = [] if score is None else [torch.sigmoid(score.float())]  # (N,)
        flags = [prediction.has_nan, prediction.switched]
        if self.keep_logits:
            logits = placement.restore(prediction.mask_logits, guide)  # (N, H, W)
            masks, has_nan, switched, *others = download([logits > 0, *flags, logits, *presences])
        else:
            thresholded = placement.masks(prediction.mask_logits, guide)
            masks, has_nan, switched, *others = download([thresholded, *flags, *presences])
        check_numbers(bool(has_nan))
        kept = others.pop(0) if self.keep_logits else None
        # Without an object score, an object counts as present if its mask is not empty.
        presence = others[0] if others else np.asarray(masks.any(axis=(1, 2)), dtype=np.float32)
        return _FrameOutput(masks, presence, switched, kept)

    def _set_last(self, segmentation: Segmentation) -> Segmentation:
        """Record the segmentation of the last frame."""
        self._state.frame_index = segmentation.frame_index + 1
        self._state.last = segmentation
        return segmentation

    def _replace_track(self, track: int, prediction: FramePrediction) -> Segmentation:
        """Replace one track's mask and presence in the last segmentation."""
        last, placement = self._state.last, self._state.placement
        assert last is not None
        assert placement is not None
        if track not in last.track_ids:
            raise PromptError(f"track {track} was not followed in the last frame yet; give the next frame first.")
        row = last.track_ids.index(track)
        output = self._download(prediction, placement)  # of one track
        masks, presence = last.masks.copy(), last.presence.copy()
        masks[row], presence[row] = output.masks[0], output.presence[0]
        kept = last.logits if last.logits is None else last.logits.copy()
        if kept is not None and output.logits is not None:
            kept[row] = output.logits[0]
        return self._set_last(replace(last, masks=masks, presence=presence, logits=kept))

    # Saving and restoring.

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the session to a file, from which ``restore`` continues it without any difference.

        Args:
            path: The file, written atomically.

        Raises:
            StateError: When it cannot be written.
        """
        about = {"model": self.model.fingerprint(), "on_cut": self.on_cut, "on_repeat": self.on_repeat}
        about |= {"borders": self.borders, "border_cells": str(self.border_cells)}
        about["keep_logits"] = str(self.keep_logits)
        save_state(path, self._state, kind=_KIND, about=about)

    @classmethod
    def restore(cls, path: str | os.PathLike[str], model: Segmenter[Any]) -> Session:
        """Restore a session that ``save`` wrote.

        Args:
            path: The file.
            model: The model that it ran on, loaded again; on the same kind of device with as many threads, masks are
                bit-identical to an uninterrupted session.

        Returns:
            The session.

        Raises:
            StateError: When the file is missing, damaged or of another kind, or the session ran on another model.
        """
        types = (*_STATE_TYPES, *(kind for kind in model.state_types if kind not in _STATE_TYPES))
        state, about = load_state(path, types, kind=_KIND, device=model.device)
        if not isinstance(state, _State):
            raise StateError(f"'{path}' is not a saved session; give a file that Session.save wrote.")
        if about.get("model") != model.fingerprint():
            raise StateError(f"'{path}' was saved with another model; load the model that the session ran on.")
        try:
            session = cls(
                model,
                keep_logits=about["keep_logits"] == "True",
                on_cut=cast(OnCut, about["on_cut"]),
                on_repeat=cast(OnRepeat, about["on_repeat"]),
                borders=cast(Borders, about["borders"]),
                border_cells=int(about["border_cells"]),
            )
            session._state = state
            session._check_restored()
        except (RefervosError, ValueError, LookupError) as error:
            reason = str(error).rstrip(".") or "a setting is missing"
            raise StateError(
                f"'{path}' does not fit the model ({reason}); the file was modified after it was saved."
            ) from error
        return session

    def _check_restored(self) -> None:
        """Check state read from a file, which may come from an untrusted source.

        Raises:
            RefervosError: When the state is not one that a session on this model could have saved.
        """
        state, last = self._state, self._state.last
        numbers = list(state.tracks)
        ascending = numbers == sorted(set(numbers)) and all(0 <= number < state.next_track for number in numbers)
        check_state(ascending, "its track numbers are out of order")
        for followed in state.tracks.values():
            check_state(isinstance(followed.state, self.model.state_types[0]), "a track is of another family")
            followed.prompt.check()
            self.model.check_restored(followed.state)
        self.model.check_past(state.past)
        state.changes.check_restored()
        check_state(min(state.counts.cuts, state.counts.repeats, state.counts.gaps) >= 0, "a count is below 0")
        check_state((last is None) == (state.frame_index == 0), "its last segmentation is missing or unexpected")
        if last is None:
            check_state(state.placement is None and state.image is None, "it has a frame before its first")
            return
        check_state(last.frame_index == state.frame_index - 1, "its last segmentation belongs to another frame")
        check_state(state.placement is not None, "the placement of its last frame is missing")
        assert state.placement is not None
        height, width = state.placement.frame_size
        count = len(last.track_ids)
        check_tensor(last.masks, "its last masks", (count, height, width), np.bool_)
        check_state(min(height, width) > 0, "its last frame is empty")
        check_state(self.model.placement((height, width)) == state.placement, "its last frame is placed differently")
        check_state(
            len(set(last.track_ids)) == count == len(last.expressions), "its last segmentation has other tracks"
        )
        check_state(all(0 <= number < state.next_track for number in last.track_ids), "its last tracks are unknown")
        check_tensor(last.presence, "its last presence", (count,), np.float32)
        check_state(bool(((last.presence >= 0) & (last.presence <= 1)).all()), "a presence is not a probability")
        check_tensor(last.switched, "its last switches", (count,), np.bool_)
        if last.logits is not None:
            check_tensor(last.logits, "its last logits", (count, height, width), np.float32)
        check_state((last.logits is not None) == self.keep_logits, "its last logits are missing or unexpected")
        check_state((state.image is not None) == (self.borders == "frame"), "its last frame is missing or unexpected")
        if state.image is not None:
            check_tensor(state.image, "its last frame", (3, height, width), torch.uint8)


_KIND = "session"
_STATE_TYPES = (_State, _Followed, Prompt, Placement, Segmentation, StreamCounts, FrameChanges, Picture)


class SessionMixin:
    """Mixin that opens and restores sessions, and prepares frames for models that see nothing but the square."""

    @property
    def words(self) -> tuple[str, ...]:
        """Closed vocabulary, in lower case: the words on which the model was trained; empty for an open one."""
        return tuple(getattr(getattr(self, "config", None), "words", ()))

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """List the words of a text on which the model was never trained, each once and in order."""
        return unknown_words(text, self.words)

    def prepare(self, images: Sequence[Tensor], placements: Sequence[Placement], past: list[Any]) -> Any:
        """Place consecutive frames in the square, on the model's device (see ``Segmenter``).

        Args:
            images: The frames, uint8 (3, H, W).
            placements: Placement of each.
            past: Ignored.

        Returns:
            float32 (T, 3, S, S).
        """
        device = cast(Segmenter[Any], self).device
        return torch.stack([place.place(image, device) for place, image in zip(placements, images, strict=True)])

    def check_past(self, past: list[Any]) -> None:
        """Check that nothing of earlier frames was kept (see ``Segmenter``)."""
        check_state(not past, "it keeps frames that the model does not read")

    def open(
        self,
        prompts: Iterable[Prompt | str] | str = (),
        *,
        keep_logits: bool = False,
        on_cut: OnCut = "ignore",
        on_repeat: OnRepeat = "answer",
        borders: Borders | None = None,
        border_cells: int = 3,
    ) -> Session:
        """Start a session on this model.

        Args:
            prompts: One sentence, or several sentences and prompts, followed from the first frame on.
            keep_logits: Also return mask logits.
            on_cut: See ``Session``.
            on_repeat: See ``Session``.
            borders: See ``Session``.
            border_cells: See ``Session``.

        Returns:
            The session, which holds all state; the model is not modified.
        """
        model = cast(Segmenter[Any], self)  # every class that inherits from this is one
        prompts = [prompts] if isinstance(prompts, str) else prompts
        return Session(
            model,
            prompts,
            keep_logits=keep_logits,
            on_cut=on_cut,
            on_repeat=on_repeat,
            borders=borders,
            border_cells=border_cells,
        )

    def restore(self, path: str | os.PathLike[str]) -> Session:
        """Restore a session of this model from a file (see ``Session.restore``)."""
        return Session.restore(path, cast(Segmenter[Any], self))


def _as_prompt(prompt: Prompt | str) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(prompt)
    if not isinstance(prompt, Prompt):
        raise PromptError(f"the prompt is a {type(prompt).__name__}; give a sentence or a Prompt.")
    return prompt
