"""The application: the server's routes behind its guard. It knows no page, but serves the files of one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import refervos
from refervos.errors import RefervosError
from refervos.serving.commands import fault_sentence, malformed
from refervos.serving.guard import LABEL_STUDIO, AccessRules, Guard
from refervos.serving.problems import MEDIA_TYPE, Problem, as_problem, problem_document
from refervos.serving.routes_general import general_routes
from refervos.serving.routes_jobs import job_routes
from refervos.serving.routes_sessions import session_routes
from refervos.serving.routes_videos import video_routes
from refervos.serving.samples import Samples
from refervos.serving.server import Server, ServerSettings

__all__ = ["ServerSettings", "create_app"]


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
    for routes in (general_routes, video_routes, session_routes, job_routes):
        app.include_router(routes(server))
    if settings.label_studio is not None:
        from refervos.integrations.label_studio.backend import label_studio_router

        model = next(iter(models.values()))
        app.include_router(label_studio_router(model, settings.label_studio), prefix=LABEL_STUDIO)
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
    app.add_exception_handler(RefervosError, any_other)
    app.add_exception_handler(Exception, any_other)
