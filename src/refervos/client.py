"""Python client of ``refervos serve``: sessions with the methods of ``Session``, whose model runs on the server."""

from __future__ import annotations

import io
import json
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from refervos.errors import RefervosError, VideoError, require_installed
from refervos.segmentation import Segmentation
from refervos.serving.wire import ReceivedFrame, decode_frame

_TIMEOUT = 60.0
_PIECE = 1 << 20


class ServerError(RefervosError):
    """The server refused a request, or cannot be reached.

    Args:
        sentence: What is wrong.
        code: Machine-readable name of the problem; empty if the server did not answer.
    """

    def __init__(self, sentence: str, code: str = "") -> None:
        super().__init__(sentence)
        self.code = code


def connect(url: str, *, token: str | None = None, timeout: float = _TIMEOUT) -> Connection:
    """Connect to a server.

    Args:
        url: Its address, such as ``http://127.0.0.1:8765``; a token after ``#token=`` is used.
        token: Its token, if it needs one.
        timeout: Seconds to wait for an answer.

    Returns:
        The connection; use it as a context manager, or close it.

    Raises:
        ServerError: The server cannot be reached, or the token is wrong.
        MissingDependencyError: The extra ``studio`` is not installed.
    """
    require_installed("the client", "studio", "httpx", "websockets")
    address, _, fragment = url.partition("#")
    if fragment.startswith("token=") and token is None:
        token = fragment.removeprefix("token=")
    return Connection(address.rstrip("/"), token, timeout)


class Connection:
    """A connection to a server; made by ``connect``.

    Attributes:
        limits: Limits of the server, by name.
    """

    def __init__(self, address: str, token: str | None, timeout: float) -> None:
        import httpx

        self._address, self._timeout = address, timeout
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=address, headers=self._headers, timeout=timeout, trust_env=False)
        try:
            self.limits: dict[str, float] = self.request("GET", "/v1/limits")
        except BaseException:
            self._http.close()
            raise

    def upload(self, path: str | Path) -> str:
        """Upload a video.

        Args:
            path: The file.

        Returns:
            Its identifier, for ``open``.

        Raises:
            VideoError: The file cannot be read.
            ServerError: The server refuses it.
        """
        try:
            with Path(path).open("rb") as file:
                headers = {"Content-Type": "application/octet-stream"}
                name = {"name": Path(path).name}
                video = self.request("POST", "/v1/videos", content=_pieces(file), headers=headers, params=name)
        except OSError as error:
            raise VideoError(f"'{path}' cannot be read ({error.strerror}); give a video file.") from error
        return str(video["id"])

    def open(
        self,
        expressions: Iterable[str] | str = (),
        *,
        video: str | Path | None = None,
        camera: int | None = None,
        url: str | None = None,
        model: str | None = None,
    ) -> RemoteSession:
        """Open a session.

        Args:
            expressions: One sentence or several.
            video: A file, which is uploaded, or the identifier of one that was.
            camera: Number of a camera of the server.
            url: Address of a stream. Without any source, pass frames to ``step``.
            model: Name of the model; default the server's.

        Returns:
            The session.

        Raises:
            ServerError: The server refuses the source or a sentence.
        """
        source: dict[str, Any] = {"webcam": True}
        if video is not None:
            known = isinstance(video, str) and len(video) == 32 and not Path(video).exists()
            source = {"video": video if known else self.upload(video)}
        elif camera is not None:
            source = {"camera": str(camera)}
        elif url is not None:
            source = {"url": url}
        sentences = [expressions] if isinstance(expressions, str) else list(expressions)
        content = {"source": source, "expressions": sentences, "model": model}
        return self.attach(self.request("POST", "/v1/sessions", json=content)["id"])

    def attach(self, session: str) -> RemoteSession:
        """Continue a session of the server by its identifier.

        Raises:
            ServerError: There is none.
        """
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect as connect_socket

        state = self.request("GET", f"/v1/sessions/{session}")
        address = self._address.replace("http", "ws", 1) + f"/v1/sessions/{session}/ws"
        try:
            socket = connect_socket(
                address,
                additional_headers=self._headers,
                open_timeout=self._timeout,
                max_size=None,
                proxy=None,
            )
        except (OSError, WebSocketException) as error:
            raise ServerError(f"the session cannot be followed ({type(error).__name__}).") from error
        return RemoteSession(self, socket, state, self._timeout)

    def restore(self, path: str | Path) -> RemoteSession:
        """Open a session from a file that ``RemoteSession.save`` wrote.

        Raises:
            VideoError: The file cannot be read.
            ServerError: The server refuses it.
        """
        try:
            with Path(path).open("rb") as file:
                state = self.request("POST", "/v1/sessions/open", content=_pieces(file))
        except OSError as error:
            raise VideoError(f"'{path}' cannot be read ({error.strerror}); give a saved session.") from error
        return self.attach(state["id"])

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return the JSON of its answer; None if there is none.

        Raises:
            ServerError: The server refuses the request, or cannot be reached.
        """
        import httpx

        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServerError(f"{self._address} cannot be reached ({type(error).__name__}).") from error
        _check(response)
        return response.json() if response.content else None

    def download(self, path: str, target: Path) -> None:
        """Write the answer to a GET request to a file; the file appears when it is complete.

        Raises:
            ServerError: The server refuses the request, or cannot be reached.
            OutputError: The file cannot be written.
        """
        import httpx

        from refervos.files.writing import PartialFile, write_error

        try:
            part = PartialFile(target)
            try:
                with self._http.stream("GET", path) as response, part.temporary.open("wb") as file:
                    if response.is_error:
                        response.read()
                        _check(response)
                    for piece in response.iter_bytes(_PIECE):
                        file.write(piece)
                part.rename(overwrite=True)
            finally:
                part.discard()
        except httpx.HTTPError as error:
            raise ServerError(f"{self._address} cannot be reached ({type(error).__name__}).") from error
        except OSError as error:
            raise write_error(target, error) from error

    def close(self) -> None:
        """Close the connection; sessions on the server go on."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RemoteSession:
    """A session on a server, with the methods of ``Session``; made by ``Connection.open``.

    Attributes:
        id: Its identifier, with which ``Connection.attach`` continues it.
        state: The server's last description of it.
    """

    def __init__(self, connection: Connection, socket: Any, state: dict[str, Any], timeout: float) -> None:
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

    def save(self, path: str | Path) -> None:
        """Save the session to one file: video, sentences, corrections and masks.

        Raises:
            ServerError: The server cannot save it.
            OutputError: The file cannot be written.
        """
        self._connection.download(f"/v1/sessions/{self.id}/file", Path(path))

    def close(self) -> None:
        """Stop following the session, which stays on the server until it is idle for long."""
        self._socket.close()

    def delete(self) -> None:
        """Close the session and delete it on the server."""
        self.close()
        self._connection.request("DELETE", f"/v1/sessions/{self.id}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _check(response: Any) -> None:
    """Raise the problem of a response, if it is one."""
    if not response.is_error:
        return
    try:
        problem = response.json()
        raise ServerError(problem["detail"], problem["code"])
    except (ValueError, KeyError, TypeError):
        raise ServerError(f"the server answered with status {response.status_code}.") from None
