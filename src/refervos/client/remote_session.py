"""A session on a server."""

from __future__ import annotations

import io
import json
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from PIL import Image

from refervos.client.errors import ServerError
from refervos.segmentation import Segmentation
from refervos.serving.wire import ReceivedFrame, decode_frame

if TYPE_CHECKING:
    from refervos.client.connection import Connection


class RemoteSession:
    """A session on a server, with the methods of ``Session``; made by ``Connection.open``.

    Attributes:
        id: Its identifier, with which ``Connection.attach`` continues it.
        state: The server's last description of it.
    """

    def __init__(
        self, connection: Connection, socket: Any, closing: ExitStack, state: dict[str, Any], timeout: float
    ) -> None:
        self._closing = closing
        self._connection, self._socket, self._timeout = connection, socket, timeout
        self._count = 0
        self._frames: list[ReceivedFrame] = []
        self._ended = False
        self.id: str = state["id"]
        self.state = state

    @property
    def expressions(self) -> dict[int, str]:
        """Sentence of each track, by track number."""
        return {track["id"]: track["expression"] for track in self.state["tracks"]}

    def add(self, expression: str) -> int:
        """Follow one more object from the next frame on, and return the track's number.

        Raises:
            ServerError: The server does not accept the sentence.
        """
        return int(self._call("add", expression=expression)["track"])

    def drop(self, track: int) -> None:
        """Stop following a track.

        Raises:
            ServerError: There is no such track.
        """
        self._call("drop", track=track)

    def set_prompt(self, track: int, expression: str) -> None:
        """Replace a track's sentence from the next frame on.

        Raises:
            ServerError: There is no such track, or the server does not accept the sentence.
        """
        self._call("set_prompt", track=track, expression=expression)

    def correct(
        self,
        track: int,
        *,
        points: Sequence[Sequence[float]] | None = None,
        labels: Sequence[int] | None = None,
        box: Sequence[float] | None = None,
        frame: int | None = None,
    ) -> Segmentation:
        """Refine a track's mask in a frame with points or a box; see ``Session.correct``.

        Args:
            track: The track's number.
            points: Clicks as x, y in pixels of the frame, (P, 2).
            labels: 1 for a click on the object, 0 for one off it, length P; default all 1.
            box: x0, y0, x1, y1 in pixels of the frame.
            frame: The frame; default the last one. From an earlier one the session goes on again.

        Returns:
            The segmentation of that frame.

        Raises:
            ServerError: There is no such track or frame, or the prompt does not fit.
        """
        at = self.state["frame"] if frame is None else frame
        chosen = labels or [1] * len(points or ())
        clicks = [[float(x), float(y), int(label)] for (x, y), label in zip(points or (), chosen, strict=True)]
        done = self._call("correct", track=track, frame=at or 0, points=clicks, box=None if box is None else list(box))
        return self._segmentation_of(done["frame"])

    def undo(self, track: int) -> Segmentation:
        """Undo a track's last correction, and return the segmentation of its frame.

        Raises:
            ServerError: There is no such track or no correction.
        """
        return self._segmentation_of(self._call("undo", track=track)["frame"])

    def step(self, frame: Any = None) -> Segmentation | None:
        """Segment one frame.

        Args:
            frame: uint8 RGB (H, W, 3) for a session without a source, sent as JPEG; None for the source's next frame.

        Returns:
            The masks at the frame's size; None at the end of the source.

        Raises:
            ServerError: The server does not answer, or cannot read the source.
        """
        if frame is not None:
            content = io.BytesIO()
            Image.fromarray(np.asarray(frame)).save(content, "JPEG", quality=95)
            self._socket.send(struct.pack("<d", time.time() * 1000) + content.getvalue())
        self._frames.clear()
        self._ended = False
        self._call("step", frames=1)
        while not self._frames:
            if self._ended:
                return None
            self._receive()
        return self._as_segmentation(self._frames.pop(0))

    def stream(self) -> Iterator[Segmentation]:
        """Segment the rest of the source as fast as the server can, one segmentation a frame."""
        self._frames.clear()
        self._ended = False
        self._call("play")
        while True:
            while self._frames:
                yield self._as_segmentation(self._frames.pop(0))
            if self._ended:
                return
            self._receive()

    def record(self, on: bool = True) -> None:
        """Keep the pictures of a live source from now on, which exports with pictures need, or stop keeping them.

        Raises:
            ServerError: The session has a recording as its source.
        """
        self._call("record", on=on)

    def alert(
        self,
        track: int,
        threshold: float = 0.5,
        when: Literal["above", "below"] = "above",
        frames: int = 1,
        webhook: str | None = None,
    ) -> None:
        """Raise an event when a track's presence is above or below a threshold for some frames.

        Args:
            track: The track's number.
            threshold: Presence to compare with, 0 to 1.
            when: Whether to raise the event above or below it.
            frames: Number of consecutive frames for which the condition must hold.
            webhook: Address to which the server posts the event; it must be one that the operator allows.

        Raises:
            ServerError: There is no such track, or the address is not allowed.
        """
        rule = {"track": track, "threshold": threshold, "when": when, "frames": frames, "webhook": webhook}
        self._connection.request("POST", f"/v1/sessions/{self.id}/alerts", json=rule)

    def export(
        self,
        path: str | Path,
        output: str = "overlay",
        *,
        frames: tuple[int, int | None] = (0, None),
        tracks: Sequence[int] | None = None,
        effects: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Write the masks so far to a file, and wait until it is complete.

        Args:
            path: The file to write.
            output: The format, such as ``overlay``, ``rle`` or ``coco`` (see docs/serving.md); a folder comes as a zip.
            frames: First and last frame; None for the last one.
            tracks: Numbers of the tracks; None for all.
            effects: Effects of ``overlay``, such as ``{"kind": "blur", "area": "background"}``.

        Raises:
            ServerError: The server cannot write them.
            OutputError: The file cannot be written.
        """
        wanted = {"format": output, "range": frames, "tracks": tracks, "effects": list(effects)}
        name = self._connection.request("POST", f"/v1/sessions/{self.id}/exports", json=wanted)["job"]
        job = self._connection.wait(name)
        self._connection.download(f"/v1/jobs/{name}/files/{job['files'][0]}", Path(path))

    def save(self, path: str | Path) -> None:
        """Save the session to one file: video, sentences, corrections and masks.

        Raises:
            ServerError: The server cannot save it.
            OutputError: The file cannot be written.
        """
        self._connection.download(f"/v1/sessions/{self.id}/file", Path(path))

    def close(self) -> None:
        """Stop following the session, which stays on the server until it is idle for long."""
        self._closing.close()

    def delete(self) -> None:
        """Close the session and delete it on the server."""
        self.close()
        self._connection.request("DELETE", f"/v1/sessions/{self.id}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a command and wait for its reply."""
        self._count += 1
        self._send({"n": self._count, "do": do, **fields})
        while True:
            reply = self._receive()
            if reply is not None and reply.get("n") == self._count:
                if "problem" in reply:
                    raise ServerError(reply["problem"]["detail"], reply["problem"]["code"])
                done: dict[str, Any] = reply["ok"]
                return done

    def _receive(self) -> dict[str, Any] | None:
        """Receive one message: a reply is returned, a frame is kept, and events are taken into account."""
        from websockets.exceptions import ConnectionClosed

        try:
            message = self._socket.recv(self._timeout)
        except TimeoutError as error:
            raise ServerError(f"the server did not answer within {self._timeout:g} seconds.") from error
        except ConnectionClosed as error:
            raise ServerError("the server closed the session; attach to it again.") from error
        if isinstance(message, bytes):
            frame = decode_frame(message)
            self._send({"do": "ack", "frame": frame.header["frame"]})
            self._frames.append(frame)
            self.state["frame"] = frame.header["frame"]
            return None
        content: dict[str, Any] = json.loads(message)
        kind = content.get("event")
        if kind == "state":
            self.state = content
        elif kind == "end":
            self._ended = True
        elif kind == "problem":
            raise ServerError(content["problem"]["detail"], content["problem"]["code"])
        return content if "n" in content else None

    def _send(self, message: dict[str, Any]) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            self._socket.send(json.dumps(message))
        except ConnectionClosed as error:
            raise ServerError("the server closed the session; attach to it again.") from error

    def _segmentation_of(self, index: int) -> Segmentation:
        """Return the newest segmentation of a frame, which came before the reply."""
        while True:
            for frame in reversed(self._frames):
                if frame.header["frame"] == index:
                    return self._as_segmentation(frame)
            self._receive()

    def _as_segmentation(self, frame: ReceivedFrame) -> Segmentation:
        tracks = frame.header["tracks"]
        names = self.expressions
        return Segmentation(
            frame_index=frame.header["frame"],
            track_ids=tuple(track["id"] for track in tracks),
            expressions=tuple(names.get(track["id"], "") for track in tracks),
            masks=frame.masks,
            presence=np.array([track["presence"] for track in tracks], np.float32),
            switched=np.zeros(len(tracks), bool),
        )
