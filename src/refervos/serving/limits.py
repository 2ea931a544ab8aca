"""Limits of the server, all settable and all published at ``/v1/limits`` before an upload begins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from refervos.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
        upload_bytes: Size of one uploaded file.
        storage_bytes: Size of all uploaded files together.
        side: Width and height of a frame in pixels.
        pixels: Number of pixels of a frame.
        duration: Length of a recording in seconds.
        frames: Number of frames of a recording, and of the newest frames of a live source whose masks are at hand.
        sentences: Number of sentences of a session.
        words: Number of words of a sentence.
        sessions: Number of sessions that are open at the same time.
        viewers: Number of WebSocket connections of a session.
        idle: Seconds without a request after which a session is saved to disk and freed.
        commands: Number of commands of a session that wait to be executed.
        jobs: Number of jobs that wait to be run.
        message_bytes: Size of one WebSocket message, such as a JPEG frame of a webcam.
        unacknowledged: Number of frames sent to a viewer before it must acknowledge one.
        silence: Seconds without an acknowledgement after which a viewer is disconnected.
        autosave: Maximum seconds of work that are lost when the server is killed.
        recording_bytes: Size of the recorded pictures of one live session.
        snapshots: Number of earlier states of a session that are kept on disk for going back.
        decode_bytes: Address space of a decoding process.
        decode_seconds: Processor seconds that decoding may need for one frame.
        camera_wait: Seconds after which a disconnected camera is given up.

    Raises:
        ConfigError: When a limit is not positive.
    """

    upload_bytes: int = 2 * 2**30
    storage_bytes: int = 20 * 2**30
    side: int = 8192
    pixels: int = 33_000_000
    duration: float = 3600.0
    frames: int = 100_000
    sentences: int = 16
    words: int = 64
    sessions: int = 8
    viewers: int = 8
    idle: float = 300.0
    commands: int = 64
    jobs: int = 32
    message_bytes: int = 4 * 2**20
    unacknowledged: int = 2
    silence: float = 20.0
    autosave: float = 2.0
    recording_bytes: int = 2 * 2**30
    snapshots: int = 24
    decode_bytes: int = 4 * 2**30
    decode_seconds: float = 30.0
    camera_wait: float = 300.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ConfigError(f"the limit {field.name} is {value}; it must be above 0.")
