"""A connection to a server: uploads, and sessions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from refervos.client.errors import ServerError
from refervos.client.remote_session import RemoteSession
from refervos.errors import VideoError, require_installed

_TIMEOUT = 60.0
_POLL = 0.2
_PIECE = 1 << 20


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
        stack = ExitStack()
        try:
            socket = stack.enter_context(
                connect_socket(
                    address,
                    additional_headers=self._headers,
                    open_timeout=self._timeout,
                    max_size=None,
                    proxy=None,
                )
            )
        except (OSError, WebSocketException) as error:
            raise ServerError(f"the session cannot be followed ({type(error).__name__}).") from error
        return RemoteSession(self, socket, stack, state, self._timeout)

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

    def wait(self, job: str) -> dict[str, Any]:
        """Wait until a job is done, and return the server's description of it, with the names of its ``files``.

        Raises:
            ServerError: It failed, was cancelled, or wrote nothing.
        """
        while True:
            state: dict[str, Any] = self.request("GET", f"/v1/jobs/{job}")
            if state["status"] not in ("queued", "running"):
                break
            time.sleep(_POLL)
        if not state["files"]:
            problem = state["problem"] or {
                "detail": f"the job is {state['status']} and wrote no file.",
                "code": "empty",
            }
            raise ServerError(problem["detail"], problem["code"])
        return state

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

    def __exit__(self, *_: object) -> None:
        self.close()


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
