"""The sessions of a server: open ones in memory, all of them on disk, and the models that they run on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from refervos.errors import StateError
from refervos.serving.alerts import WebhookSender
from refervos.serving.archive import unpack_archive
from refervos.serving.decoding import FrameFeed
from refervos.serving.estimates import SpeedEstimates
from refervos.serving.limits import Limits
from refervos.serving.problems import Problem, unknown
from refervos.serving.served_session import SESSION_FILE, Feed, ServedSession, SessionRecord, read_record
from refervos.serving.source_rules import SourceRules
from refervos.serving.videos import Video, VideoStore
from refervos.serving.webcam import PushedFeed
from refervos.video.addresses import described

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[0-9a-f]{32}")


class SessionRegistry:
    """Opens, finds, reopens and frees sessions.

    Args:
        folder: Folder of the sessions; created.
        models: The loaded models by name; the first is the default.
        videos: The uploaded videos.
        sources: Which other sources are allowed.
        limits: Limits of the server.
        webhooks: Posts the events of alerts.
    """

    def __init__(
        self,
        folder: Path,
        models: dict[str, Any],
        videos: VideoStore,
        sources: SourceRules,
        limits: Limits,
        webhooks: WebhookSender | None = None,
    ) -> None:
        self._folder, self._videos, self._sources, self._limits = folder, videos, sources, limits
        self.models, self._webhooks = models, webhooks
        self._estimates = SpeedEstimates()
        self._freed_frames = 0
        self._lock = threading.Lock()
        self._open: dict[str, ServedSession] = {}
        self._addresses: dict[str, str] = {}  # of streams; never written, because they may contain passwords
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def open_sessions(self) -> list[ServedSession]:
        """The sessions in memory."""
        with self._lock:
            return list(self._open.values())

    @property
    def frames(self) -> int:
        """Number of frames segmented in all sessions since the start."""
        return self._freed_frames + sum(session.frames for session in self.open_sessions)

    def model_name(self, name: str | None) -> str:
        """Return the name of a model, or of the default one.

        Raises:
            Problem: The server does not run it.
        """
        chosen = next(iter(self.models)) if name is None else name
        if chosen not in self.models:
            sentence = f"this server does not run the model {chosen[:80]!r}; it runs {', '.join(self.models)}."
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "unknown-model", sentence)
        return chosen

    def create(self, source: dict[str, Any], expressions: Sequence[str], model: str | None = None) -> ServedSession:
        """Open a session. Blocks for a moment.

        Args:
            source: ``{"video": id}``, ``{"camera": "0"}``, ``{"url": "rtsp://..."}`` or ``{"webcam": true}``.
            expressions: Sentences to follow from the first frame on.
            model: Name of the model; default the first.

        Returns:
            The session.

        Raises:
            RefervosError: The source is not allowed, a sentence is not accepted, or a limit is reached.
        """
        name = self.model_name(model)
        record = SessionRecord(secrets.token_hex(16), name, {})
        address = self._describe(record, source)
        if address is not None:
            self._addresses[record.id] = address
        folder = self._folder / record.id
        folder.mkdir()
        try:
            session = self._start(record)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            for expression in expressions:
                session.submit(_adding(session, expression)).result()
        except BaseException:
            self.remove(record.id)
            raise
        frames = record.source.get("frame_count")
        session.estimate = self._estimates.estimate(name, self.models[name], list(expressions), frames)
        return session

    def get(self, session: str) -> ServedSession:
        """Return a session; one that was freed, or that an earlier process saved, is reopened. Blocks for a moment.

        Raises:
            Problem: There is none of that id, or too many sessions are open.
        """
        with self._lock:
            if session in self._open:
                self._open[session].used = time.monotonic()
                return self._open[session]
        if not _ID.fullmatch(session) or not (self._folder / session / SESSION_FILE).is_file():
            raise unknown("session", session)
        try:
            record = read_record(self._folder / session)
        except (OSError, ValueError, TypeError, KeyError) as error:
            _LOG.exception("session %s cannot be read", session)
            raise unknown("session", session) from error
        return self._start(record)

    def open_archive(self, source: Path) -> ServedSession:
        """Open a session from one file. Blocks while it is checked.

        Args:
            source: A file that ``write_archive`` wrote.

        Returns:
            The session, under a new identifier.

        Raises:
            RefervosError: The file is damaged, or the server does not run its model.
        """
        name = secrets.token_hex(16)
        folder = self._folder / name
        folder.mkdir()
        try:
            record = unpack_archive(source, folder, name, self._limits, self._place_video)
            record.send_images = not self._videos.get(record.source["video"]).playable
            return self._start(record)
        except StateError:
            shutil.rmtree(folder, ignore_errors=True)
            sentence = (
                "the session was saved with other weights or another version of its model, or its state is damaged."
            )
            raise Problem(HTTPStatus.CONFLICT, "unknown-model", sentence) from None
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _place_video(self, video: Path | None, source: Any) -> dict[str, Any]:
        """Move the video of an archive to the other videos, or find the one that the archive names."""
        if not isinstance(source, dict) or not isinstance(source.get("video"), str):
            sentence = "the session followed a live source, which cannot be opened again; its masks are in the file."
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "live-session", sentence)
        if video is None:
            return _shown(self._videos.get(source["video"]))
        return _shown(self._videos.admit(self._videos.take(video), str(source.get("name", "video"))))

    def remove(self, session: str) -> None:
        """Close a session and delete its files.

        Raises:
            Problem: There is none of that id.
        """
        with self._lock:
            found = self._open.pop(session, None)
        if found is not None:
            found.close()
            self._freed_frames += found.frames
        elif not _ID.fullmatch(session) or not (self._folder / session).is_dir():
            raise unknown("session", session)
        self._addresses.pop(session, None)
        shutil.rmtree(self._folder / session, ignore_errors=True)

    def free_idle(self) -> None:
        """Save and free the sessions that nobody has used for the idle time. Blocks while they are saved."""
        now = time.monotonic()
        with self._lock:
            idle = [
                name
                for name, session in self._open.items()
                if not session.watched and not session.keeps_watch and now - session.used > self._limits.idle
            ]
            freed = [self._open.pop(name) for name in idle]
        for session in freed:
            session.close()
            self._freed_frames += session.frames

    async def free_idle_regularly(self) -> None:
        """Free idle sessions until cancelled."""
        while True:
            await asyncio.sleep(min(10.0, self._limits.idle / 4))
            with contextlib.suppress(RuntimeError):
                await asyncio.to_thread(self.free_idle)

    def close(self) -> None:
        """Save and free all sessions."""
        with self._lock:
            freed = list(self._open.values())
            self._open.clear()
        for session in freed:
            session.close()

    def _start(self, record: SessionRecord) -> ServedSession:
        """Start the worker of a session within the limit, or return the one that somebody else has just started."""
        if record.model not in self.models:
            sentence = f"the session ran on the model {record.model[:80]!r}, which this server does not run."
            raise Problem(HTTPStatus.CONFLICT, "unknown-model", sentence)
        with self._lock:
            if record.id in self._open:
                return self._open[record.id]
            if len(self._open) >= self._limits.sessions:
                sentence = f"{len(self._open)} sessions are open, which is the limit; close one or try again later."
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "too-many-sessions", sentence, retry_after=30)
            model = self.models[record.model]
            folder = self._folder / record.id
            started = ServedSession(record, model, self._feed(record), folder, self._limits, self._webhooks)
            self._open[record.id] = started
            return started

    def _describe(self, record: SessionRecord, source: dict[str, Any]) -> str | None:
        """Describe the source in the record, and return the address that must not be in it."""
        if "video" in source:
            video = self._videos.get(source["video"])
            record.source = _shown(video)
            record.send_images = not video.playable
            return None
        record.live, record.can_go_back, record.send_images = True, False, True
        if "webcam" in source:
            record.source = {"webcam": True}
            return None
        if "camera" in source:
            record.source = {"camera": self._sources.check_camera(source["camera"]).removeprefix("camera:")}
            return None
        address = self._sources.check_url(source["url"])
        record.source = {"url": described(address).strip("'")}
        return address

    def _feed(self, record: SessionRecord) -> Callable[[Callable[[], None]], Feed]:
        """Return what opens the source of a session."""
        source, limits = record.source, self._limits
        if "video" in source:
            path = str(self._videos.path(source["video"]))
            return lambda wake: FrameFeed(path, source["name"], limits, wake)
        if "webcam" in source:
            return lambda wake: PushedFeed(limits, wake)
        if "camera" in source:
            camera = self._sources.check_camera(source["camera"])
            return lambda wake: FrameFeed(camera, None, limits, wake)
        if record.id not in self._addresses:
            sentence = "the address of this stream was not saved, since it may contain a password; open a new session."
            raise Problem(HTTPStatus.CONFLICT, "address-not-saved", sentence)
        address = self._addresses[record.id]
        return lambda wake: FrameFeed(address, None, limits, wake)


def _shown(video: Video) -> dict[str, Any]:
    """Describe a video as the source of a session."""
    names = ("name", "frame_count", "fps", "width", "height", "playable")
    return {"video": video.id, **{name: getattr(video, name) for name in names}}


def _adding(session: ServedSession, expression: str) -> Callable[[], Any]:
    return lambda: session.add(expression)
