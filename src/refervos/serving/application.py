"""The application: routes over videos and sessions. It is created by ``create_app`` and knows no page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

import refervos
from refervos.serving.commands import Sentence, fault_sentence, malformed
from refervos.serving.guard import COOKIE, AccessRules, Guard
from refervos.serving.limits import Limits
from refervos.serving.problems import MEDIA_TYPE, Problem, as_problem, problem_document
from refervos.serving.registry import SessionRegistry
from refervos.serving.samples import Samples
from refervos.serving.socket import serve_socket
from refervos.serving.source_rules import SourceRules
from refervos.serving.videos import Video, VideoStore
from refervos.serving.wire import encode_jpeg


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        folder: Folder for videos and sessions, which survive a restart; None for a temporary one.
        limits: Limits of the server.
        access: Who may use it.
        sources: Which sources beside uploads may be opened.
        page: Folder with the files of a page to serve at ``/``; None for none.
    """

    folder: Path | None = None
    limits: Limits = field(default_factory=Limits)
    access: AccessRules = field(default_factory=AccessRules)
    sources: SourceRules = field(default_factory=SourceRules)
    page: Path | None = None


class VideoSource(BaseModel):
    """An uploaded video."""

    model_config = ConfigDict(extra="forbid")
    video: Annotated[str, Field(max_length=64)]


class CameraSource(BaseModel):
    """A camera of the server."""

    model_config = ConfigDict(extra="forbid")
    camera: Annotated[str, Field(max_length=64)]


class UrlSource(BaseModel):
    """A stream on the network."""

    model_config = ConfigDict(extra="forbid")
    url: Annotated[str, Field(max_length=2000)]


class WebcamSource(BaseModel):
    """The webcam of the viewer's browser."""

    model_config = ConfigDict(extra="forbid")
    webcam: bool


class SessionRequest(BaseModel):
    """What a new session shall do."""

    model_config = ConfigDict(extra="forbid")
    source: VideoSource | CameraSource | UrlSource | WebcamSource
    expressions: Annotated[list[Sentence], Field(max_length=256)] = []
    model: Annotated[str, Field(max_length=200)] | None = None


class TokenRequest(BaseModel):
    """A token, to be kept as a cookie."""

    token: Annotated[str, Field(max_length=500)]


class VideoRequest(BaseModel):
    """A video that is on the server already."""

    model_config = ConfigDict(extra="forbid")
    sample: Annotated[str, Field(max_length=200)] | None = None
    path: Annotated[str, Field(max_length=4000)] | None = None


class Server:
    """State of a running server.

    Args:
        models: The loaded models by name; the first is the default.
        settings: Its settings.
        samples: Clips that can be opened without an upload.
    """

    def __init__(self, models: dict[str, Any], settings: ServerSettings, samples: Samples) -> None:
        self.settings, self.samples = settings, samples
        self._temporary = None if settings.folder else Path(tempfile.mkdtemp(prefix="refervos-"))
        folder = settings.folder or self._temporary
        assert folder is not None
        self.videos = VideoStore(folder / "videos", settings.limits)
        self.sessions = SessionRegistry(folder / "sessions", models, self.videos, settings.sources, settings.limits)

    def close(self) -> None:
        """Save and free everything; a temporary folder is removed."""
        self.sessions.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def create_app(
    models: dict[str, Any], settings: ServerSettings | None = None, samples: Samples | None = None
) -> FastAPI:
    """Create the application.

    Args:
        models: The loaded models by name; the first is the default.
        settings: Settings of the server.
        samples: Clips that can be opened without an upload.

    Returns:
        The application, for any ASGI server; its state is ``app.state.server``.
    """
    settings = settings or ServerSettings()
    server = Server(models, settings, samples or {})

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        freeing = asyncio.create_task(server.sessions.free_idle_regularly())
        try:
            yield
        finally:
            freeing.cancel()
            await asyncio.to_thread(server.close)

    app = FastAPI(
        title="refervos",
        version=refervos.__version__,
        description="Referring video object segmentation: sentences in, masks out.",
        docs_url=None,  # its page is fetched from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.server = server
    _answer_errors(app)
    _add_general_routes(app, server)
    _add_video_routes(app, server)
    _add_session_routes(app, server)
    if settings.page is not None:
        from starlette.staticfiles import StaticFiles

        app.mount("/", StaticFiles(directory=settings.page, html=True), name="page")
    app.add_middleware(_guarded(settings.access))
    return app


def _guarded(rules: AccessRules) -> Callable[[ASGIApp], ASGIApp]:
    return lambda app: Guard(app, rules)


def problem_response(problem: Problem) -> Response:
    """Return a problem as a response."""
    headers = {} if problem.retry_after is None else {"Retry-After": str(problem.retry_after)}
    return JSONResponse(problem_document(problem), int(problem.status), headers, media_type=MEDIA_TYPE)


def _answer_errors(app: FastAPI) -> None:
    """Answer every error with a problem."""

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(malformed(fault_sentence(error.errors())))

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        code = status.phrase.lower().replace(" ", "-")
        return problem_response(Problem(status, code, f"the request cannot be answered: {status.phrase.lower()}."))

    async def any_other(_: Request, error: Exception) -> Response:
        return problem_response(as_problem(error))

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(refervos.errors.RefervosError, any_other)
    app.add_exception_handler(Exception, any_other)


def _add_general_routes(app: FastAPI, server: Server) -> None:
    @app.get("/health", summary="Say that the server runs")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": refervos.__version__}

    @app.get("/ready", summary="Say whether another session can be opened")
    async def ready() -> Response:
        full = len(server.sessions.open_sessions) >= server.settings.limits.sessions
        return JSONResponse({"ready": not full}, 503 if full else 200)

    @app.get("/v1/limits", summary="Every limit of the server")
    async def limits() -> dict[str, float]:
        return asdict(server.settings.limits)

    @app.get("/v1/models", summary="The models that sessions can run on")
    async def models() -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "title": str(model.describe().get("family", name)),
                "needs_download": False,
                "closed_vocabulary": list(getattr(getattr(model, "config", None), "words", ()) or ()),
                "conversation": hasattr(model, "converse"),
                "loaded": True,
            }
            for name, model in server.sessions.models.items()
        ]

    @app.get("/v1/samples", summary="Clips that can be opened without an upload")
    async def samples() -> list[dict[str, Any]]:
        return [{"id": name, **sample.describe()} for name, sample in server.samples.items()]

    @app.post("/v1/login", status_code=204, summary="Keep the token as a cookie, for media and event streams")
    async def login(request: TokenRequest) -> Response:
        if not server.settings.access.knows(request.token):
            raise Problem(HTTPStatus.UNAUTHORIZED, "wrong-token", "this is not the server's token.")
        response = Response(status_code=204)
        response.set_cookie(COOKIE, request.token, httponly=True, samesite="strict")
        return response


def _add_video_routes(app: FastAPI, server: Server) -> None:
    store, limits = server.videos, server.settings.limits

    @app.post(
        "/v1/videos",
        status_code=201,
        summary="Upload a video",
        description="The body is the file itself, or JSON with the id of a sample or an allowed path.",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                    "application/json": {"schema": VideoRequest.model_json_schema()},
                },
            }
        },
    )
    async def upload(request: Request, name: Annotated[str, Query(max_length=500)] = "video") -> Video:
        if request.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
            return await asyncio.to_thread(_existing, server, await _small_json(request))
        declared = request.headers.get("content-length", "")
        try:
            folder = await store.receive(request.stream(), int(declared) if declared.isdigit() else None)
        except ClientDisconnect:
            raise malformed("the upload broke off.") from None
        return await asyncio.to_thread(store.admit, folder, name)

    @app.get("/v1/videos/{video}", summary="Describe a video")
    async def describe(video: str) -> Video:
        return store.get(video)

    @app.get("/v1/videos/{video}/file", summary="The file, also in ranges")
    async def file(video: str) -> FileResponse:
        found = store.get(video)
        return FileResponse(store.path(video), media_type=found.media_type, headers={"Accept-Ranges": "bytes"})

    @app.get("/v1/videos/{video}/frames/{frame}.jpg", summary="One frame as JPEG")
    def frame(video: str, frame: Annotated[int, Field(ge=0, le=10**9)]) -> Response:
        from refervos.serving.decoding import Decoder

        found = store.get(video)
        decoder = Decoder(limits)
        try:
            decoder.open(str(store.path(video)), frame, found.name)
            image = decoder.next()
        finally:
            decoder.close()
        if image is None:
            raise Problem(HTTPStatus.NOT_FOUND, "unknown-frame", f"the video has no frame {frame}.")
        return Response(encode_jpeg(image.image, 4096), media_type="image/jpeg")

    @app.delete("/v1/videos/{video}", status_code=204, summary="Delete a video")
    def delete(video: str) -> Response:
        store.remove(video)
        return Response(status_code=204)


def _existing(server: Server, content: Any) -> Video:
    """Make a video of a sample or of an allowed file."""
    try:
        request = VideoRequest.model_validate(content)
    except ValueError:
        raise malformed('the content must be {"sample": id} or {"path": "..."}.') from None
    if request.sample is not None:
        sample = server.samples.get(request.sample)
        if sample is None:
            raise Problem(HTTPStatus.NOT_FOUND, "unknown-sample", f"there is no sample {request.sample[:40]!r}.")
        return server.videos.admit(server.videos.link(sample.path), f"{request.sample}{sample.path.suffix}")
    if request.path is not None:
        path = server.settings.sources.check_file(request.path)
        return server.videos.admit(server.videos.link(path), path.name)
    raise malformed('the content must be {"sample": id} or {"path": "..."}.')


async def _small_json(request: Request) -> Any:
    """Read a short JSON body."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > 100_000:
            raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", "the JSON content is too long.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise malformed("the content is not JSON.") from None


def _add_session_routes(app: FastAPI, server: Server) -> None:
    registry = server.sessions

    @app.post("/v1/sessions", status_code=201, summary="Open a session")
    def open_session(request: SessionRequest) -> dict[str, Any]:
        session = registry.create(request.source.model_dump(), request.expressions, request.model)
        return session.state()

    @app.get("/v1/sessions/{session}", summary="The state of a session")
    def state(session: str) -> dict[str, Any]:
        return registry.get(session).state()

    @app.delete("/v1/sessions/{session}", status_code=204, summary="Close a session and delete its files")
    def delete(session: str) -> Response:
        registry.remove(session)
        return Response(status_code=204)

    @app.get("/v1/sessions/{session}/masks", summary="Masks of computed frames as JSON lines with COCO run lengths")
    def masks(
        session: str,
        begin: Annotated[int, Query(alias="from", ge=0, le=10**9)] = 0,
        to: Annotated[int, Query(ge=0, le=10**9)] = 10**9,
    ) -> StreamingResponse:
        found = registry.get(session)
        tracks = set(found.record.tracks)
        lines = (json.dumps(line) + "\n" for line in found.masks.lines(begin, to, tracks))
        return StreamingResponse(lines, media_type="application/jsonl")

    @app.websocket("/v1/sessions/{session}/ws")
    async def socket(socket: WebSocket, session: str) -> None:
        await serve_socket(socket, session, registry, server.settings.access, server.settings.limits)
