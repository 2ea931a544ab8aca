"""Routes about jobs: whole videos in, files out, with progress as an event stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, StreamingResponse

from refervos.serving.jobs import Job, Purpose
from refervos.serving.requests import JobRequest
from refervos.serving.server import Server
from refervos.serving.work import OutputPlan, segment_video


def job_routes(server: Server) -> APIRouter:
    """Return the routes about jobs."""
    routes = APIRouter()
    jobs = server.jobs

    @routes.post("/v1/jobs", status_code=202, summary="Segment a whole video")
    def create(request: JobRequest) -> dict[str, str]:
        model = server.model(request.model)
        video = server.videos.get(request.video)
        effects = tuple(each.effect() for each in request.effects)
        plan = OutputPlan(tuple(request.outputs), *request.range, effects=effects)
        limits = server.settings.limits
        work = segment_video(video, server.videos.path(video.id), model, request.expressions, plan, limits)
        purpose = Purpose(video=video.id, outputs=plan.formats)
        return {"job": jobs.submit(work, plan.total(video), purpose).id}

    @routes.get("/v1/videos/{video}/jobs", summary="The jobs about a video, newest first")
    async def of_video(video: str) -> list[dict[str, Any]]:
        return [job.describe() for job in jobs.of(video=server.videos.get(video).id)]

    @routes.get("/v1/jobs/{job}", summary="How far a job is")
    async def describe(job: str) -> dict[str, Any]:
        return jobs.get(job).describe()

    @routes.get("/v1/jobs/{job}/events", summary="The progress of a job as an event stream")
    async def events(job: str) -> StreamingResponse:
        return StreamingResponse(_events(jobs.get(job)), media_type="text/event-stream")

    @routes.get("/v1/jobs/{job}/files/{name}", summary="A file that a job wrote")
    async def file(job: str, name: str) -> FileResponse:
        path, media_type = jobs.file(job, name)
        return FileResponse(path, media_type=media_type, filename=name)

    @routes.delete("/v1/jobs/{job}", status_code=204, summary="Cancel a job, or delete its files")
    def delete(job: str) -> Response:
        jobs.remove(job)
        return Response(status_code=204)

    return routes


async def _events(job: Job) -> AsyncIterator[str]:
    async for state in job.follow():
        yield f"data: {json.dumps(state)}\n\n"
