"""Routes about the server: health, limits, models, samples, token and measurements."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

import refervos
from refervos.serving.guard import COOKIE
from refervos.serving.metrics import MEDIA_TYPE as METRICS
from refervos.serving.metrics import metrics_text
from refervos.serving.problems import Problem
from refervos.serving.requests import TokenRequest
from refervos.serving.server import Server


def general_routes(server: Server) -> APIRouter:
    """Return the routes about the server itself."""
    routes = APIRouter()

    @routes.get("/health", summary="Say that the server runs")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": refervos.__version__}

    @routes.get("/ready", summary="Say whether another session can be opened")
    async def ready() -> Response:
        full = len(server.sessions.open_sessions) >= server.settings.limits.sessions
        return JSONResponse({"ready": not full}, 503 if full else 200)

    @routes.get("/metrics", summary="Measurements for Prometheus")
    def metrics() -> Response:
        return Response(metrics_text(server), media_type=METRICS)

    @routes.get("/v1/limits", summary="Every limit of the server, and which sources beside uploads are allowed")
    async def limits() -> dict[str, Any]:
        sources = server.settings.sources
        allowed = {
            "files": bool(sources.files),
            "cameras": sources.cameras,
            "urls": bool(sources.hosts),
            "webhooks": server.settings.webhooks.describe(),
        }
        return {**asdict(server.settings.limits), "allowed": allowed}

    @routes.get("/v1/models", summary="The models that sessions can run on")
    async def models() -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "title": str(model.describe().get("family", name)),
                "needs_download": False,
                "closed_vocabulary": list(getattr(model, "words", ())),
                "conversation": hasattr(model, "converse"),
                "loaded": True,
            }
            for name, model in server.models.items()
        ]

    @routes.get("/v1/samples", summary="Clips that can be opened without an upload")
    async def samples() -> list[dict[str, Any]]:
        return [{"id": name, **sample.describe()} for name, sample in server.samples.items()]

    @routes.post("/v1/login", status_code=204, summary="Keep the token as a cookie, for media and event streams")
    async def login(request: TokenRequest) -> Response:
        if not server.settings.access.knows(request.token):
            raise Problem(HTTPStatus.UNAUTHORIZED, "wrong-token", "this is not the server's token.")
        response = Response(status_code=204)
        if server.settings.access.token is not None:  # otherwise any text is accepted, and none is needed
            response.set_cookie(COOKIE, request.token, httponly=True, samesite="strict")
        return response

    return routes
