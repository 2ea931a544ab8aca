"""A session of the server: one worker thread alone touches it, and its commands go ahead of frames."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from refervos.errors import PromptError, RefervosError, VideoError
from refervos.files.writing import write_atomically
from refervos.prompts import Prompt
from refervos.segmentation import Segmentation
from refervos.segmenter import Segmenter
from refervos.serving.alerts import Alert, WebhookSender, append_line
from refervos.serving.asked_questions import AskedQuestion
from refervos.serving.decoding import DecodedInfo
from refervos.serving.history import Edit, EditKind, History
from refervos.serving.limits import Limits
from refervos.serving.mask_record import MaskRecord
from refervos.serving.problems import Problem, as_problem, problem_document, unknown
from refervos.serving.recording import Recording
from refervos.serving.snapshots import Snapshot, Snapshots
from refervos.serving.viewers import Viewer
from refervos.serving.wire import TrackMask, encode_frame, encode_jpeg
from refervos.session.session import Session
from refervos.text.grounded import Phrase
from refervos.video import Frame, palette

_LOG = logging.getLogger(__name__)
_EVENTS = 10_000
"""Number of events of a session that are kept."""
_TURNS = 1_000
"""Number of questions of a session that are kept with their answers."""


class Feed(Protocol):
    """Frames of one source, which arrive by themselves."""

    info: DecodedInfo | None
    error: VideoError | None
    ended: bool

    @property
    def outages(self) -> int:
        """How often the connection to the source was lost so far."""

    @property
    def ready(self) -> bool:
        """Whether ``take`` would return a frame."""

    def take(self, timeout: float = 0.0) -> Frame | None:
        """Return the next frame, waiting for it if a timeout is given; None if there is none."""

    def seek(self, start: int) -> None:
        """Continue at another frame."""

    def close(self) -> None:
        """End decoding."""


@dataclass
class TrackView:
    """A track as its users see it.

    Attributes:
        id: Its number, never reused in a session.
        expression: Its sentence.
        label: Its name.
        colour: RGB, 0 to 255.
        visible: Whether it is shown.
    """

    id: int
    expression: str
    label: str
    colour: tuple[int, int, int]
    visible: bool = True


@dataclass
class SessionRecord:
    """What is known of a session beside its masks and snapshots; saved as JSON.

    Attributes:
        id: Random identifier.
        model: Name of the model.
        source: The source as its user may see it.
        live: Whether frames arrive at their own pace.
        can_go_back: Whether earlier frames can be read again.
        send_images: Whether viewers need the frames as JPEG.
        tracks: The tracks by number.
        next_track: Number of the next track.
        first: First frame to segment.
        last: Last frame to segment; None for all.
        speed: Frames shown per frame of the source's own rate; None for as fast as the model.
        recording: Whether the pictures of a live source are kept for exports.
        events: Corrections, switches, cuts, alerts and outages.
        alerts: Rules by which alerts are raised.
        questions: What was asked about the video, with the answers.
    """

    id: str
    model: str
    source: dict[str, Any]
    live: bool = False
    can_go_back: bool = True
    send_images: bool = False
    tracks: dict[int, TrackView] = field(default_factory=dict)
    next_track: int = 0
    first: int = 0
    last: int | None = None
    speed: float | None = None
    recording: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    questions: list[AskedQuestion] = field(default_factory=list)


class ServedSession:
    """One session, its worker thread and its files.

    Args:
        record: What is known of the session.
        model: The model.
        feed: The source of frames; receives a function that wakes the session.
        folder: Folder of its files; exists.
        limits: Limits of the server.
        webhooks: Posts the events of alerts.
    """

    def __init__(
        self,
        record: SessionRecord,
        model: Segmenter[Any],
        feed: Callable[[Callable[[], None]], Feed],
        folder: Path,
        limits: Limits,
        webhooks: WebhookSender | None = None,
    ) -> None:
        self.record, self.folder = record, folder
        self.used = time.monotonic()
        self.estimate: dict[str, float | None] | None = None
        self._model, self._limits, self._webhooks = model, limits, webhooks
        self._wake = threading.Condition()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._viewers: list[Viewer] = []
        self._closing = False
        self._running = False
        self._steps = 0
        self._goal = 0  # after a correction: the frame that had been reached before
        self._end: int | None = None  # the frame after the last one of the source or of the range, once it is known
        self._outages = self._frames = 0
        self._due = 0.0  # when the next frame is shown
        self._spent: deque[float] = deque(maxlen=30)  # seconds between the last frames
        self._dirty, self._saved = True, time.monotonic()
        self._size: tuple[int, int] | None = None
        self.masks = MaskRecord(folder / MASKS_FILE, limits.frames if record.live else None)
        self.recording = Recording(folder / PICTURES, limits.recording_bytes)
        self._history = History()
        self._snapshots = Snapshots(folder, limits.snapshots)
        self._session = Session(model, on_cut="forget" if record.live else "ignore")
        self._numbers: dict[int, int] = {}
        self._position = record.first
        self._last: tuple[Frame, Segmentation] | None = None
        self._feed = feed(self.wake)
        self._before: tuple[int, float] | None = None  # frames and seconds of a live source before it was opened again
        self._restore()
        if self._position and record.can_go_back:
            self._feed.seek(self._position)
        self._thread = threading.Thread(target=self._run, name=f"session {record.id[:8]}", daemon=True)
        self._thread.start()

    # From any thread.

    def wake(self) -> None:
        """Let the worker look for work."""
        with self._wake:
            self._wake.notify_all()

    def submit(self, command: Callable[[], Any]) -> Future[Any]:
        """Queue a command ahead of all frames.

        Args:
            command: Called in the worker's thread.

        Returns:
            Its result.

        Raises:
            Problem: The queue is full, or the session is closed.
        """
        future: Future[Any] = Future()
        with self._wake:
            if self._closing:
                raise Problem(HTTPStatus.GONE, "closed-session", "the session was closed; open it again.")
            if len(self._commands) >= self._limits.commands:
                sentence = f"{len(self._commands)} commands of this session wait already; wait for their replies."
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", sentence, retry_after=1)
            self.used = time.monotonic()
            self._commands.append((command, future))
            self._wake.notify_all()
        return future

    def watch(self, viewer: Viewer) -> None:
        """Add a viewer, and send it the state."""
        with self._wake:
            if len(self._viewers) >= self._limits.viewers:
                sentence = f"this session has {len(self._viewers)} viewers already; close one of them."
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "too-many-viewers", sentence, retry_after=10)
            self._viewers.append(viewer)
            self.used = time.monotonic()
            # Described by the worker: a state from another thread could overtake one that is newer.
            self._commands.append((lambda: viewer.offer_event({"event": "state", **self.state()}), Future()))
            self._wake.notify_all()

    def unwatch(self, viewer: Viewer) -> None:
        """Remove a viewer; safe to call twice."""
        with self._wake:
            if viewer in self._viewers:
                self._viewers.remove(viewer)
            self.used = time.monotonic()
            self._wake.notify_all()

    @property
    def watched(self) -> bool:
        """Whether anybody watches."""
        return bool(self._viewers)

    @property
    def viewer_count(self) -> int:
        """Number of viewers."""
        return len(self._viewers)

    @property
    def frames(self) -> int:
        """Number of frames segmented since the session was opened, also those segmented again."""
        return self._frames

    @property
    def keeps_watch(self) -> bool:
        """Whether it has work to do without viewers, such as raising alerts."""
        return self._running and bool(self.record.alerts)

    @property
    def feed(self) -> Feed:
        """The source of its frames."""
        return self._feed

    @property
    def running(self) -> bool:
        """Whether it advances by itself."""
        return self._running

    @property
    def ended(self) -> bool:
        """Whether no frame follows; False again after going back, until the last frame is reached."""
        return self._end is not None and self._position >= self._end

    def close(self) -> None:
        """Save the session and free its thread, its decoding process and its memory; safe to call twice."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._feed.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def broadcast(self, event: dict[str, Any]) -> None:
        """Send an event to all viewers."""
        for viewer in list(self._viewers):
            viewer.offer_event(event)

    def state(self) -> dict[str, Any]:
        """Describe the session as JSON (see docs/serving.md)."""
        record, info = self.record, self._feed.info
        fps = self._frames_per_second()
        count = record.source.get("frame_count") or (None if info is None else info.frame_count)
        tracks = [
            {
                **asdict(track),
                "colour": list(track.colour),
                "prompts": self._history.prompts_of(track.id),
                "presence": self.masks.presence(track.id),
            }
            for track in list(record.tracks.values())
        ]
        return {
            "id": record.id,
            "model": record.model,
            "source": record.source,
            "live": record.live,
            "frame": self._position - 1 if self._position > record.first else None,
            "frame_count": count,
            "size": None if self._size is None else list(self._size),
            "running": self._running,
            "until": self._until(),
            "ended": self.ended,
            "speed": record.speed,
            "fps": fps,
            "range": [record.first, record.last],
            "computed": _ranges(self.masks.frames),
            "recording": record.recording,
            "recorded": _ranges(self.recording.frames),
            "tracks": tracks,
            "events": list(record.events),
            "alerts": [asdict(alert) | {"webhook": alert.webhook is not None} for alert in list(record.alerts)],
            "estimate": self.estimate,
        }

    def _until(self) -> int | None:
        """Return the last frame that a correction or a step is going to reach; None if no frame follows from them."""
        goal = max(self._goal, self._position + self._steps)
        return goal - 1 if goal > self._position else None

    # Commands, in the worker's thread only; their names are those of the WebSocket.

    def add(self, expression: str, frame: int | None = None) -> dict[str, Any]:
        """Follow one more object from the next frame on, or from an earlier one; then the frames since are repeated.

        Args:
            expression: The sentence.
            frame: First frame in which to follow it; None, or one that comes later, for the next one.
        """
        self._check_sentence(expression)
        return self._begin("add", expression, frame)

    def follow(self, phrase: str, token: tuple[float, ...], frame: int | None = None) -> dict[str, Any]:
        """Follow a phrase of a conversation from the next frame on, or from an earlier one.

        Args:
            phrase: The phrase.
            token: Its prompt token.
            frame: See ``add``.
        """
        return self._begin("follow", phrase, frame, token)

    def keep_question(self, asked: AskedQuestion) -> None:
        """Keep a question with its answer; once more when the answer has changed."""
        if not any(each is asked for each in self.record.questions):
            self.record.questions.append(asked)
            del self.record.questions[:-_TURNS]
        self._dirty = True

    def _begin(
        self, kind: EditKind, expression: str, frame: int | None, token: tuple[float, ...] = ()
    ) -> dict[str, Any]:
        record = self.record
        self._check_count()
        reached = self._position
        if frame is not None and frame < reached:
            self._go_to(max(frame, record.first))
            self._goal = max(self._goal, reached)
        track = record.next_track
        edit = Edit(self._history.count, self._position, kind, track, expression, token=token)
        self._repeat(edit)
        self._note(edit)
        record.tracks[track] = TrackView(track, expression, expression, palette(track + 1)[track])
        record.next_track += 1
        self._changed()
        return {"track": track}

    def _check_count(self) -> None:
        count = len(self.record.tracks)
        if count >= self._limits.sentences:
            raise PromptError(f"the session has {count} sentences, which is the limit; drop one first.")

    def drop(self, track: int) -> dict[str, Any]:
        """Stop following an object and forget its masks."""
        self._view(track)
        if track in self._numbers:
            self._session.drop(self._numbers.pop(track))
        for index in self._history.indices_of(track):
            self._history.remove(index)
            self._snapshots.forget_edit(index)
        del self.record.tracks[track]
        self.record.alerts[:] = [alert for alert in self.record.alerts if alert.track != track]
        self._drop_events(lambda event: event.get("track") == track)
        self._changed()
        return {}

    def set_prompt(self, track: int, expression: str) -> dict[str, Any]:
        """Replace a track's sentence from the next frame on."""
        view = self._view(track)
        self._check_sentence(expression)
        self._session.set_prompt(self._number(track), expression)
        self._note(Edit(self._history.count, self._position, "set_prompt", track, expression))
        if view.label == view.expression:
            view.label = expression
        view.expression = expression
        self._changed()
        return {}

    def rename(self, track: int, label: str) -> dict[str, Any]:
        """Change the name under which a track is shown."""
        self._view(track).label = label
        self._changed()
        return {}

    def show(self, track: int, visible: bool, colour: tuple[int, int, int] | None = None) -> dict[str, Any]:
        """Show or hide a track, and change its colour if one is given."""
        view = self._view(track)
        view.visible = visible
        view.colour = colour or view.colour
        self._changed()
        return {}

    def correct(
        self,
        track: int,
        frame: int,
        points: Sequence[tuple[float, float, int]] = (),
        box: tuple[float, float, float, float] | None = None,
    ) -> dict[str, Any]:
        """Correct a track's mask in a frame; from an earlier frame the session goes on again up to the newest one."""
        self._view(track)
        reached = self._position
        if not self.record.can_go_back:
            frame = reached - 1  # of a live source only the newest frame can be corrected
        self._go_to(frame + 1, again=self._last is None)
        edit = Edit(self._history.count, self._position, "correct", track, points=tuple(points), box=box)
        segmentation = self._correct(edit)
        self._note(edit)
        self._drop_events(lambda event: event["kind"] == "correction" and event["number"] == edit.number)
        time = None if self._last is None else self._last[0].time
        self._event("correction", frame, track, number=edit.number, time=time, points=list(points), box=box)
        self._publish_last(segmentation)
        self._goal = max(self._goal, reached)
        self._changed()
        return {"frame": frame}

    def undo(self, track: int) -> dict[str, Any]:
        """Undo the correction of a track that was made last, and go on from its frame."""
        self._view(track)
        index = self._history.last_correction(track)
        if index is None:
            raise PromptError(f"track {track} has no correction to undo.")
        edit, reached = self._history.edits[index], self._position
        at_frame = edit.at == reached and index < self._history.applied
        segmentation = self._session.undo(self._number(track)) if at_frame else None
        self._history.remove(index)
        self._snapshots.forget_after(index)
        self._drop_events(lambda event: event.get("number") == edit.number)
        if segmentation is None and self.record.can_go_back:
            self._go_to(edit.at, again=True)
            segmentation = None if self._last is None else self._last[1]
        if segmentation is not None:
            self._publish_last(segmentation)
        self._goal = max(self._goal, reached)
        self._changed()
        return {"frame": edit.at - 1}

    def play(self, speed: float | None = None) -> dict[str, Any]:
        """Advance by itself, as fast as the model or at a multiple of the source's own rate."""
        self.record.speed, self._running, self._steps = speed, True, 0
        self._end = None  # looked for again, since a range may have changed
        self._due = time.monotonic()
        self._changed()
        return {}

    def pause(self) -> dict[str, Any]:
        """Stop advancing."""
        self._running, self._steps, self._goal = False, 0, 0
        self._changed()
        return {}

    def step(self, frames: int = 1, to: int | None = None) -> dict[str, Any]:
        """Advance by a number of frames, or to a frame, then pause.

        Args:
            frames: Number of frames, in addition to those of earlier steps.
            to: Last frame to segment, in place of a number: to ask for the same frame twice is to ask for it once.
        """
        self._running, self._end = False, None
        if to is None:
            self._steps += frames
            return {"frame": self._position + self._steps - 1}
        self._goal = max(self._goal, to + 1)
        self._changed()
        return {"frame": to}

    def seek(self, frame: int) -> dict[str, Any]:
        """Go to a frame: back to a segmented one, or ahead without segmenting those in between."""
        self._refuse_live("seek")
        if frame < self._position:
            self._go_to(frame + 1)
        elif frame > self._position:
            self._note(Edit(self._history.count, self._position, "skip", to=frame))
            self._skip(frame)
        self._goal = 0
        self._changed()
        return {"frame": frame}

    def range(self, first: int, last: int | None) -> dict[str, Any]:
        """Set the first and the last frame to segment."""
        self._refuse_live("set a range")
        if last is not None and last < first:
            raise VideoError(f"the range ends at frame {last}, before it begins at {first}; exchange the two.")
        self.record.first, self.record.last = first, last
        self._end = None
        if self._position < first:
            self.seek(first)
        self._changed()
        return {}

    def record_pictures(self, on: bool) -> dict[str, Any]:
        """Begin or stop to keep the pictures of a live source, which exports with pictures need."""
        if not self.record.live:
            raise VideoError(
                "a recording is exported with the pictures of its own file; only live sources are recorded."
            )
        self.record.recording = on
        self._changed()
        return {}

    def alert(
        self,
        track: int,
        threshold: float = 0.5,
        when: Literal["above", "below"] = "above",
        frames: int = 1,
        webhook: str | None = None,
    ) -> dict[str, Any]:
        """Raise an event when a track's presence is above or below a threshold for some frames.

        The address of a webhook must be one that ``WebhookRules`` allows.
        """
        self._view(track)
        alerts = self.record.alerts
        if len(alerts) >= 4 * self._limits.sentences:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY, "too-many-alerts", f"there are {len(alerts)} alerts already."
            )
        alerts.append(Alert(track, threshold, when, frames, webhook))
        self._changed()
        return {"alert": len(alerts) - 1}

    def clear_alerts(self, track: int | None = None, alert: int | None = None) -> dict[str, Any]:
        """Remove the alerts of a track, one alert by its position in the state, or without either all of them."""
        alerts = self.record.alerts
        if alert is not None:
            if alert >= len(alerts):
                raise unknown("alert", str(alert))
            del alerts[alert]
        elif track is not None:
            self._view(track)
            alerts[:] = [each for each in alerts if each.track != track]
        else:
            alerts.clear()
        self._changed()
        return {}

    # The worker.

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closing or self._commands or self._may_advance()):
                    self._wake.wait(self._patience())
                    if self._dirty and self._save_is_due():
                        break
                if self._closing:
                    break
                command = self._commands.popleft() if self._commands else None
            if command is not None:
                self._execute(*command)
            elif self._may_advance():
                self._advance_safely()
            if self._dirty and self._save_is_due():
                self._save_safely()
        with self._wake:
            for _, future in self._commands:
                future.set_exception(Problem(HTTPStatus.GONE, "closed-session", "the session was closed."))
            self._commands.clear()
        self._save_safely()
        self.masks.close()
        for viewer in list(self._viewers):
            viewer.close()

    def _execute(self, command: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(command())
        except Exception as error:
            if not isinstance(error, RefervosError):
                _LOG.exception("a command of session %s failed", self.record.id)
            future.set_exception(as_problem(error))

    def _may_advance(self) -> bool:
        """Whether to look for a frame now."""
        wanted = self._running or self._steps or self._position < self._goal
        if not wanted or self.ended:
            return False
        if not (self._feed.ready or self._feed.ended):
            return False
        if self.record.live:
            return True
        if not all(viewer.has_room for viewer in self._viewers):
            return False
        return self._steps > 0 or self.record.speed is None or time.monotonic() >= self._due

    def _patience(self) -> float | None:
        """Seconds to wait before looking again."""
        for viewer in list(self._viewers):
            if viewer.silent_for() > self._limits.silence:
                viewer.close()
                self._viewers.remove(viewer)
        if self._running and self.record.speed is not None and self._feed.ready and not self.record.live:
            return max(0.001, min(0.25, self._due - time.monotonic()))
        if self._dirty or self._viewers:
            return 0.25
        return None

    def _advance_safely(self) -> None:
        try:
            self._advance()
        except Exception as error:
            if not isinstance(error, RefervosError):
                _LOG.exception("session %s stopped", self.record.id)
            self._running, self._steps, self._goal = False, 0, 0
            self.broadcast({"event": "problem", "problem": problem_document(as_problem(error))})
            self._changed()

    def _advance(self) -> None:
        """Segment one frame."""
        last = self.record.last
        if last is not None and self._position > last:
            self._finish(None)
            return
        frame = self._feed.take()
        if frame is None:
            self._finish(self._feed.error)
            return
        if self._before is not None:
            frame = _later(frame, *self._before)
        if self._feed.info is not None and self.record.live and not self._feed.info.live:
            self.record.live, self.record.can_go_back = False, True  # an address of a recording
        self._segment(frame)
        self._steps = max(0, self._steps - 1)
        if frame.index == last or self.ended:
            self._finish(None)
        elif not (self._running or self._steps or self._position < self._goal):
            self._changed()
        self._pace()

    def _pace(self) -> None:
        now = time.monotonic()
        self._spent.append(now)
        info = self._feed.info
        if self.record.speed is not None and info is not None and info.fps:
            self._due = max(self._due + 1 / (info.fps * self.record.speed), now - 0.5)

    def _finish(self, error: VideoError | None) -> None:
        """End at the last frame."""
        self._running, self._steps, self._goal, self._end = False, 0, 0, self._position
        if error is not None:
            self.broadcast({"event": "problem", "problem": problem_document(as_problem(error))})
        self.broadcast({"event": "end", "frame": self._position - 1})
        self._changed()

    def _segment(self, frame: Frame) -> None:
        """Segment a frame, record its masks and show them."""
        for edit in self._history.due(frame.index):
            self._repeat(edit)
        if frame.after_gap:
            self._session.mark_gap()
        self._drop_events(lambda event: event["frame"] == frame.index and event["kind"] in ("switch", "cut"))
        segmentation = self._session.step(frame.image)
        self._position = frame.index + 1
        if self._feed.outages > self._outages:
            self._outages = self._feed.outages
            self._event("outage", frame.index, None, time=frame.time)
            self.broadcast({"event": "outage", "frame": frame.index, "time": frame.time, "count": self._outages})
        if segmentation.cut:
            self._event("cut", frame.index, None, time=frame.time)
            self.broadcast({"event": "cut", "frame": frame.index, "time": frame.time})
        by_number = {number: track for track, number in self._numbers.items()}
        for number, switched in zip(segmentation.track_ids, segmentation.switched, strict=True):
            if switched:
                self._event("switch", frame.index, by_number[number], time=frame.time)
        self._publish(frame, segmentation)
        self._raise_alerts(
            frame, {by_number[n]: float(p) for n, p in zip(segmentation.track_ids, segmentation.presence, strict=True)}
        )
        self._frames += 1
        self._dirty = True

    def _publish(self, frame: Frame, segmentation: Segmentation) -> None:
        """Record the masks of a frame and send it to the viewers."""
        by_number = {number: track for track, number in self._numbers.items()}
        rows = zip(segmentation.track_ids, segmentation.presence, segmentation.masks, strict=True)
        masks = [TrackMask(by_number[number], float(presence), mask) for number, presence, mask in rows]
        height, width = segmentation.masks.shape[1:]
        self._size = (height, width)
        self._last = (frame, segmentation)
        self.masks.append(frame.index, frame.time, (height, width), masks)
        if self.record.recording:
            self._record_picture(frame)
        if not self._viewers:
            return
        header = {
            "frame": frame.index,
            "time": frame.time,
            "sent": round(time.time() * 1000, 1),
            "w": width,
            "h": height,
            "fps": self._frames_per_second(),
        }
        message = encode_frame(header, masks, encode_jpeg(frame.image) if self.record.send_images else b"")
        for viewer in list(self._viewers):
            viewer.offer_frame(frame.index, message, newest_wins=self.record.live)

    def _record_picture(self, frame: Frame) -> None:
        try:
            self.recording.add(frame.index, frame.image)
        except RefervosError as error:
            self.record.recording = False
            self.broadcast({"event": "problem", "problem": problem_document(as_problem(error))})
            self._changed()

    def _publish_last(self, segmentation: Segmentation) -> None:
        """Publish the last frame again, after a correction."""
        assert self._last is not None
        self._publish(self._last[0], segmentation)

    def _frames_per_second(self) -> float | None:
        if len(self._spent) < 2 or self._spent[-1] <= self._spent[0]:
            return None
        return round((len(self._spent) - 1) / (self._spent[-1] - self._spent[0]), 2)

    # Going back, and repeating edits.

    def _go_to(self, position: int, *, again: bool = False) -> None:
        """Bring the session to where a frame comes next, from the snapshot before it.

        Args:
            position: Index of the frame that comes next.
            again: Whether to go back even if the session is there, because an edit was removed.

        Raises:
            VideoError: The frame has not been segmented yet, or cannot be read again.
        """
        if position == self._position and not again:
            return
        if position > self._position or position < self.record.first:
            raise VideoError(
                f"frame {position - 1} has not been segmented yet; the frames segmented so far are "
                f"{self.record.first} to {self._position - 1}."
            )
        self._refuse_live("go back")
        self._snapshots.forget_beyond(position - 1)
        self._load(self._snapshots.before(position - 1))  # at least one frame is read again
        self._feed.seek(self._position)
        while self._position < position and not self._closing:
            frame = self._feed.take(timeout=1.0)
            if frame is not None:
                self._segment(frame)
            elif self._feed.ended:
                raise self._feed.error or VideoError(f"frame {position - 1} cannot be read again.")
        for edit in self._history.due(self._position):
            self._repeat(edit)

    def _load(self, snapshot: Snapshot | None) -> None:
        """Continue from a snapshot, or from the start."""
        if snapshot is None:
            self._session = Session(self._model, on_cut=self._session.on_cut)
            self._numbers, self._position, self._history.applied = {}, self.record.first, 0
            return
        self._session = Session.restore(self._snapshots.path(snapshot), self._model)
        self._numbers, self._position = dict(snapshot.numbers), snapshot.position
        self._history.applied = snapshot.edits
        for track in set(self._numbers) - set(self.record.tracks):
            self._session.drop(self._numbers.pop(track))

    def _repeat(self, edit: Edit) -> None:
        """Carry out an edit again that was made at this frame before."""
        if edit.kind == "add" and edit.track is not None:
            self._numbers[edit.track] = self._session.add(edit.expression or "")
        elif edit.kind == "follow" and edit.track is not None:
            text = edit.expression or ""
            phrase = Phrase(text, 0, len(text))
            token = torch.tensor(edit.token, dtype=torch.float32, device=self._model.device)
            state = self._model.begin_phrase(phrase, token)  # type: ignore[attr-defined]
            self._numbers[edit.track] = self._session.follow(Prompt(text), state)
        elif edit.kind == "set_prompt" and edit.track is not None:
            self._session.set_prompt(self._number(edit.track), edit.expression or "")
        elif edit.kind == "correct":
            self._publish_last(self._correct(edit))
        elif edit.kind == "skip" and edit.to is not None:
            self._skip(edit.to)

    def _correct(self, edit: Edit) -> Segmentation:
        assert edit.track is not None
        points = [(x, y) for x, y, _ in edit.points] or None
        labels = [label for _, _, label in edit.points] or None
        return self._session.correct(self._number(edit.track), points=points, labels=labels, box=edit.box)

    def _skip(self, frame: int) -> None:
        self._session.mark_gap()
        self._position = frame
        self._feed.seek(frame)

    def _note(self, edit: Edit) -> None:
        """Record an edit that was carried out; later snapshots lack it."""
        index = self._history.insert(edit)
        self._snapshots.forget_after(index)
        self._snapshots.forget_beyond(edit.at)

    def _number(self, track: int) -> int:
        if track not in self._numbers:
            raise PromptError(f"track {track} begins at a later frame; go on to that frame first.")
        return self._numbers[track]

    def _view(self, track: int) -> TrackView:
        if track not in self.record.tracks:
            raise PromptError(f"there is no track {track}; the tracks are {sorted(self.record.tracks)}.")
        return self.record.tracks[track]

    def _check_sentence(self, expression: str) -> None:
        if len(expression.split()) > self._limits.words:
            raise PromptError(
                f"the sentence has {len(expression.split())} words; at most {self._limits.words} are allowed."
            )
        Prompt(expression)

    def _refuse_live(self, what: str) -> None:
        if not self.record.can_go_back:
            raise VideoError(f"a live source cannot {what}; its earlier frames are gone.")

    # Events.

    def _raise_alerts(self, frame: Frame, presence: dict[int, float]) -> None:
        """Raise the alerts of a frame."""
        self._drop_events(lambda event: event["frame"] == frame.index and event["kind"] == "alert")
        for alert in self.record.alerts:
            if alert.track not in presence or not alert.update(presence[alert.track]):
                continue
            value = round(presence[alert.track], 4)
            self._event("alert", frame.index, alert.track, time=frame.time, presence=value, when=alert.when)
            event = {
                "session": self.record.id,
                "frame": frame.index,
                "time": frame.time,
                "track": alert.track,
                "expression": self.record.tracks[alert.track].expression,
                "presence": value,
                "when": alert.when,
                "threshold": alert.threshold,
            }
            append_line(self.folder / ALERTS_FILE, event)
            self.broadcast({"event": "alert", **event})
            if alert.webhook is not None and self._webhooks is not None:
                self._webhooks.send(alert.webhook, event)

    def _event(self, kind: str, frame: int, track: int | None, **more: Any) -> None:
        self.record.events.append({"frame": frame, "track": track, "kind": kind, **more})
        del self.record.events[:-_EVENTS]

    def _drop_events(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        self.record.events[:] = [event for event in self.record.events if not unwanted(event)]

    def _changed(self) -> None:
        """Send the new state to all viewers."""
        self._dirty = True
        if self._viewers:
            self.broadcast({"event": "state", **self.state()})

    # Files.

    def _save_is_due(self) -> bool:
        return time.monotonic() - self._saved >= self._limits.autosave / 2

    def _save_safely(self) -> None:
        try:
            self.save()
        except (RefervosError, OSError):
            _LOG.exception("session %s cannot be saved", self.record.id)
        self._saved = time.monotonic()

    def save(self) -> None:
        """Save the session; in the worker's thread only."""
        self.masks.flush()
        if self._session.frame_index:
            self._snapshots.save(self._session, self._position, self._history.applied, self._numbers)
        content = {
            "version": 1,
            "record": asdict(self.record) | {"tracks": [asdict(each) for each in self.record.tracks.values()]},
            "edits": self._history.to_json(),
            "edit_count": self._history.count,
            "snapshots": self._snapshots.to_json(),
            "running": self._running,
            "end": self._end,
        }
        write_atomically(self.folder / SESSION_FILE, json.dumps(content, allow_nan=False).encode())
        self._dirty = False

    def _restore(self) -> None:
        """Continue where an earlier process saved the session, if one did."""
        path = self.folder / SESSION_FILE
        if not path.is_file():
            return
        content = json.loads(path.read_bytes())
        edits = [Edit.from_json(each) for each in content["edits"]]
        self._history = History(edits, 0, int(content["edit_count"]))
        self._end = content.get("end")
        known = [Snapshot.from_json(each) for each in content["snapshots"]]
        self._snapshots = Snapshots(self.folder, self._limits.snapshots, known)
        self._load(self._snapshots.newest)
        for edit in self._history.due(self._position):
            if edit.kind != "correct":
                self._repeat(edit)
        if self.record.live and self._position:
            last = self.masks.read(self._position - 1) or {}
            away = max(0.001, time.time() - path.stat().st_mtime)
            self._before = self._position, (last.get("time") or 0.0) + away
            self._session.mark_gap()


MASKS_FILE = "masks.jsonl"
"""Name of the file with the masks of a session."""

PICTURES = "pictures"
"""Name of the folder with the recorded pictures of a live session."""

ALERTS_FILE = "alerts.jsonl"
"""Name of the file to which the events of alerts are appended."""

SESSION_FILE = "session.json"
"""Name of the file with everything about a session but its masks and snapshots."""


def read_record(folder: Path) -> SessionRecord:
    """Read what is known of a saved session.

    Args:
        folder: Folder of its files.

    Returns:
        The record.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged.
    """
    values = json.loads((folder / SESSION_FILE).read_bytes())["record"]
    tracks = [TrackView(**{**each, "colour": tuple(each["colour"])}) for each in values.pop("tracks")]
    alerts = [Alert(**each) for each in values.pop("alerts")]
    questions = [AskedQuestion.from_json(each) for each in values.pop("questions", ())]
    by_number = {track.id: track for track in tracks}
    return SessionRecord(**values, tracks=by_number, alerts=alerts, questions=questions)


def _later(frame: Frame, frames: int, seconds: float) -> Frame:
    """Number a frame on from those of an earlier connection."""
    return replace(frame, index=frame.index + frames, time=None if frame.time is None else frame.time + seconds)


def _ranges(frames: list[int]) -> list[list[int]]:
    """Summarise ascending frames as ranges of first and last."""
    found: list[list[int]] = []
    for frame in frames:
        if found and frame == found[-1][1] + 1:
            found[-1][1] = frame
        else:
            found.append([frame, frame])
    return found
