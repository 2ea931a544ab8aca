"""Routes about videos: uploads, files and single frames."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import Field
from starlette.requests import ClientDisconnect

from refervos.serving.commands import malformed
from refervos.serving.decoding import read_frame
from refervos.serving.problems import Problem
from refervos.serving.requests import VideoRequest
from refervos.serving.server import Server
from refervos.serving.videos import Video
from refervos.serving.wire import encode_jpeg


def video_routes(server: Server) -> APIRouter:
    """Return the routes about videos."""
    routes = APIRouter()
    store, limits = server.videos, server.settings.limits

    @routes.post(
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

    @routes.get("/v1/videos/{video}", summary="Describe a video")
    async def describe(video: str) -> Video:
        return store.get(video)

    @routes.get("/v1/videos/{video}/file", summary="The file, also in ranges")
    async def file(video: str) -> FileResponse:
        found = store.get(video)
        return FileResponse(store.path(video), media_type=found.media_type, headers={"Accept-Ranges": "bytes"})

    @routes.get("/v1/videos/{video}/frames/{frame}.jpg", summary="One frame as JPEG")
    def frame(video: str, frame: Annotated[int, Field(ge=0, le=10**9)]) -> Response:
        found = store.get(video)
        image = read_frame(store.path(video), frame, found.name, limits)
        return Response(encode_jpeg(image, 4096), media_type="image/jpeg")

    @routes.delete("/v1/videos/{video}", status_code=204, summary="Delete a video")
    def delete(video: str) -> Response:
        store.remove(video)
        return Response(status_code=204)

    return routes


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
