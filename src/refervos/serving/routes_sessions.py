"""Routes about sessions; what changes one from frame to frame goes through its WebSocket."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response, WebSocket
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import TypeAdapter, ValidationError
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from refervos.errors import RefervosError
from refervos.serving.archive import write_archive
from refervos.serving.commands import malformed, sentence_of
from refervos.serving.decoding import read_frame
from refervos.serving.jobs import Purpose
from refervos.serving.outputs import recorded_segmentation
from refervos.serving.problems import Problem, as_problem, problem_document, unknown
from refervos.serving.requests import AlertRequest, EffectRequest, ExportRequest, QuestionRequest, SessionRequest
from refervos.serving.served_session import ALERTS_FILE
from refervos.serving.server import Server
from refervos.serving.socket import serve_socket
from refervos.serving.wire import encode_jpeg
from refervos.serving.work import OutputPlan, write_live_session, write_session
from refervos.video.effects import apply_effects

_EFFECTS = TypeAdapter(list[EffectRequest])


def session_routes(server: Server) -> APIRouter:
    """Return the routes about sessions."""
    routes = APIRouter()
    registry = server.sessions

    @routes.post("/v1/sessions", status_code=201, summary="Open a session")
    def open_session(request: SessionRequest) -> dict[str, Any]:
        session = registry.create(request.source.model_dump(), request.expressions, request.model)
        return session.state()

    @routes.get("/v1/sessions/{session}", summary="The state of a session")
    def state(session: str) -> dict[str, Any]:
        return registry.get(session).state()

    @routes.delete("/v1/sessions/{session}", status_code=204, summary="Close a session and delete its files")
    def delete(session: str) -> Response:
        registry.remove(session)
        return Response(status_code=204)

    @routes.get("/v1/sessions/{session}/masks", summary="Masks of computed frames as JSON lines with COCO run lengths")
    def masks(
        session: str,
        begin: Annotated[int, Query(alias="from", ge=0, le=10**9)] = 0,
        to: Annotated[int, Query(ge=0, le=10**9)] = 10**9,
    ) -> StreamingResponse:
        found = registry.get(session)
        tracks = set(found.record.tracks)
        lines = (json.dumps(line) + "\n" for line in found.masks.lines(begin, to, tracks))
        return StreamingResponse(lines, media_type="application/jsonl")

    @routes.get("/v1/sessions/{session}/file", summary="The session as one file")
    def file(session: str, video: bool = True) -> FileResponse:
        """Return a zip with the session, its masks and, unless ``video`` is false, its video."""
        found = registry.get(session)
        source = found.record.source.get("video")
        path = server.videos.path(source) if video and source is not None else None
        folder = Path(tempfile.mkdtemp(prefix="refervos-file-"))
        try:
            write_archive(found, folder / "session.refervos", path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        remove = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
        return FileResponse(
            folder / "session.refervos", media_type="application/zip", filename="session.refervos", background=remove
        )

    @routes.post(
        "/v1/sessions/open",
        status_code=201,
        summary="Open a session from one file",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def open_file(request: Request) -> dict[str, Any]:
        declared = request.headers.get("content-length", "")
        try:
            folder = await server.videos.receive(request.stream(), int(declared) if declared.isdigit() else None)
        except ClientDisconnect:
            raise malformed("the upload broke off.") from None
        try:
            session = await asyncio.to_thread(registry.open_archive, folder / "file")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return session.state()

    @routes.get("/v1/sessions/{session}/frames/{frame}.jpg", summary="One frame with effects, as JPEG")
    def preview(
        session: str,
        frame: Annotated[int, PathParameter(ge=0, le=10**9)],
        effects: Annotated[str, Query(max_length=4000, description="Effects as JSON, as for exports")] = "[]",
    ) -> Response:
        found = registry.get(session)
        source = found.record.source.get("video")
        record = found.masks.read(frame)
        if source is None or record is None:
            raise Problem(
                HTTPStatus.NOT_FOUND, "unknown-frame", f"the session has no masks of a frame {frame} to show."
            )
        try:
            chosen = [each.effect() for each in _EFFECTS.validate_json(effects)]
        except ValidationError as error:
            raise malformed(sentence_of(error)) from None
        visible = {track.id: track for track in list(found.record.tracks.values()) if track.visible}
        record["tracks"] = [track for track in record["tracks"] if track["id"] in visible]
        segmentation = recorded_segmentation(record, {})
        colours = [visible[track].colour for track in segmentation.track_ids]
        image = read_frame(server.videos.path(source), frame, found.record.source["name"], server.settings.limits)
        return Response(
            encode_jpeg(apply_effects(image, list(segmentation.masks), colours, chosen), 4096), media_type="image/jpeg"
        )

    @routes.post("/v1/sessions/{session}/exports", status_code=202, summary="Write masks of a session to files")
    def export(session: str, request: ExportRequest) -> dict[str, str]:
        found = registry.get(session)
        tracks = {track.id: track for track in list(found.record.tracks.values())}
        for track in request.tracks or ():
            if track not in tracks:
                raise unknown("track", str(track))
        kept = [track for track in tracks.values() if request.tracks is None or track.id in request.tracks]
        plan = OutputPlan(
            (request.format,),
            *request.range,
            effects=tuple(each.effect() for each in request.effects),
            colours={track.id: track.colour for track in kept},
            events=tuple(found.record.events),
        )
        names = {track.id: track.label for track in kept}
        source, purpose = found.record.source.get("video"), Purpose(session=session, outputs=plan.formats)
        if source is None:
            name = next(iter(found.record.source))
            work, total = write_live_session(name, found.recording, found.masks, names, plan)
            return {"job": server.jobs.submit(work, total, purpose).id}
        video, limits = server.videos.get(source), server.settings.limits
        work = write_session(video, server.videos.path(source), found.masks, names, plan, limits)
        return {"job": server.jobs.submit(work, plan.total(video), purpose).id}

    @routes.get("/v1/sessions/{session}/exports", summary="The exports of a session, newest first")
    def exports(session: str) -> list[dict[str, Any]]:
        return [job.describe() for job in server.jobs.of(session=registry.get(session).record.id)]

    @routes.post("/v1/sessions/{session}/alerts", status_code=201, summary="Raise an event by a sentence's presence")
    def alert(session: str, request: AlertRequest) -> dict[str, int]:
        found = registry.get(session)
        webhook = None if request.webhook is None else server.settings.webhooks.find(request.webhook)
        values = request.model_dump() | {"webhook": webhook}
        result: dict[str, int] = found.submit(lambda: found.alert(**values)).result()
        return result

    @routes.get("/v1/sessions/{session}/alerts", summary="The events of alerts as JSON lines")
    def alerts(session: str) -> Response:
        path = registry.get(session).folder / ALERTS_FILE
        return Response(path.read_bytes() if path.exists() else b"", media_type="application/jsonl")

    @routes.post("/v1/sessions/{session}/questions", summary="Ask about the video; the answer is an event stream")
    def question(session: str, request: QuestionRequest) -> StreamingResponse:
        found = registry.get(session)
        source = found.record.source.get("video")
        path = None if source is None else server.videos.path(source)
        server.talks.keep({each.record.id for each in registry.open_sessions})
        answer = server.talks.ask(found, server.models[found.record.model], path, request.question)
        return StreamingResponse(_events(answer), media_type="text/event-stream")

    @routes.get("/v1/sessions/{session}/questions", summary="The questions so far, with their answers")
    def questions(session: str) -> list[dict[str, Any]]:
        return [asdict(asked) for asked in list(registry.get(session).record.questions)]

    @routes.websocket("/v1/sessions/{session}/ws")
    async def socket(socket: WebSocket, session: str) -> None:
        await serve_socket(socket, session, registry, server.settings.access, server.settings.limits)

    return routes


def _events(pieces: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Write pieces as an event stream; an error is its last event."""
    try:
        for piece in pieces:
            yield f"data: {json.dumps(piece)}\n\n"
    except RefervosError as error:
        yield f"event: problem\ndata: {json.dumps(problem_document(as_problem(error)))}\n\n"
