"""The WebSocket of a session: commands in, replies, events and frames out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from refervos.errors import RefervosError
from refervos.serving.commands import Ack, malformed, parse_command, running
from refervos.serving.guard import AccessRules
from refervos.serving.limits import Limits
from refervos.serving.problems import Problem, as_problem, problem_document
from refervos.serving.registry import SessionRegistry
from refervos.serving.served_session import ServedSession
from refervos.serving.viewers import Viewer
from refervos.serving.webcam import PushedFeed

_UNAUTHORISED, _UNKNOWN, _TOO_LARGE = 4401, 4404, 1009
_PATIENCE = 10.0
"""Seconds within which the token must arrive."""


async def serve_socket(
    socket: WebSocket, name: str, registry: SessionRegistry, rules: AccessRules, limits: Limits
) -> None:
    """Serve one connection to a session until it ends.

    Args:
        socket: The connection, not yet accepted.
        name: Identifier of the session.
        registry: The sessions.
        rules: Who may connect.
        limits: Limits of the server.
    """
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        if not (socket.scope["state"].get("authorised") or await _has_token(socket, rules)):
            await socket.close(_UNAUTHORISED, "wrong-token")
            return
        try:
            session = await asyncio.to_thread(registry.get, name)
            viewer = Viewer(asyncio.get_running_loop(), limits.unacknowledged, session.wake)
            session.watch(viewer)
        except RefervosError as error:
            problem = as_problem(error)
            await socket.send_text(json.dumps({"event": "problem", "problem": problem_document(problem)}))
            await socket.close(_UNKNOWN, problem.code)
            return
        sending = asyncio.create_task(_send(socket, viewer))
        try:
            await _receive(socket, session, viewer, limits)
        finally:
            session.unwatch(viewer)
            if viewer.sends_frames and isinstance(session.feed, PushedFeed):
                session.feed.disconnected()
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await sending


async def _has_token(socket: WebSocket, rules: AccessRules) -> bool:
    try:
        text = await asyncio.wait_for(socket.receive_text(), _PATIENCE)
        content = json.loads(text)
        token = content.get("token") if isinstance(content, dict) else None
    except (TimeoutError, ValueError, KeyError, RecursionError):
        return False
    return rules.knows(token if isinstance(token, str) else None)


async def _send(socket: WebSocket, viewer: Viewer) -> None:
    while (message := await viewer.next()) is not None:
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        else:
            await socket.send_text(message)
    with contextlib.suppress(RuntimeError):
        await socket.close(1001, "closed-session")


async def _receive(socket: WebSocket, session: ServedSession, viewer: Viewer, limits: Limits) -> None:
    """Queue commands until the connection ends; replies follow in the order in which commands finish."""
    replies: set[asyncio.Task[None]] = set()
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        content: bytes | str = message.get("text") or message.get("bytes") or b""
        if len(content) > limits.message_bytes:
            await socket.close(_TOO_LARGE, "too-large")
            return
        if isinstance(content, bytes):
            viewer.sends_frames = True
            problem = await asyncio.to_thread(_push, session, content)
            if problem is not None:
                _reply(viewer, None, problem)
            continue
        number, command = parse_command(content)
        if isinstance(command, Problem):
            _reply(viewer, number, command)
        elif isinstance(command, Ack):
            viewer.acknowledge(command.frame)
        else:
            try:
                future = session.submit(running(command, session))
            except Problem as busy:
                _reply(viewer, number, busy)
                continue
            task = asyncio.create_task(_reply_later(viewer, command.n, future))
            replies.add(task)
            task.add_done_callback(replies.discard)


def _push(session: ServedSession, content: bytes) -> Problem | None:
    """Pass a frame of a webcam on, and return the problem with it, if any."""
    if not isinstance(session.feed, PushedFeed):
        return malformed("binary messages are frames of a webcam; this session has another source.")
    try:
        session.feed.push(content)
    except RefervosError as error:
        return as_problem(error)
    return None


async def _reply_later(viewer: Viewer, number: int, future: Any) -> None:
    try:
        result = await asyncio.wrap_future(future)
    except RefervosError as error:
        _reply(viewer, number, as_problem(error))
    else:
        viewer.offer_event({"n": number, "ok": result})


def _reply(viewer: Viewer, number: int | None, problem: Problem) -> None:
    viewer.offer_event({"n": number, "problem": problem_document(problem)})
