"""Who may talk to the server: Host, Origin and token of every request, and the headers that bind browsers."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refervos.serving.problems import MEDIA_TYPE, Problem, problem_document

COOKIE = "refervos_token"
"""Cookie with the token, for what a page cannot send a header with: media and event streams."""

LABEL_STUDIO = "/label-studio"
"""Where the backend of Label Studio is."""

_OPEN = ("/health", "/ready", "/v1/login")
_CLOSED = ("/v1/", "/metrics", "/openapi.json", LABEL_STUDIO)
_UPLOADS = ("/v1/videos", "/v1/sessions/open")
_LONGEST_BODY = 1_000_000
"""Longest body in bytes of a request that is no upload."""

_CONTENT_SECURITY = "; ".join(
    [
        "default-src 'self'",
        "media-src 'self' blob:",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS: Mapping[bytes, bytes] = {
    b"content-security-policy": _CONTENT_SECURITY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(self), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class AccessRules:
    """Who may talk to the server.

    Attributes:
        token: Token that every request needs; None for none, only on a loopback address.
        hosts: Names by which the server may be addressed, beside loopback names, without ports.
        origins: Further origins of pages that may use it, such as ``https://example.org``.
    """

    token: str | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def knows(self, token: str | None) -> bool:
        """Whether a token is the right one, or none is needed; takes the same time for all wrong tokens."""
        if self.token is None:
            return True
        return token is not None and hmac.compare_digest(token.encode(), self.token.encode())

    def check_host(self, host: str) -> None:
        """Refuse a request that a foreign name has led here, as in DNS rebinding.

        Raises:
            Problem: The name is not one of the server's.
        """
        name = _without_port(host).lower()
        if name not in self.hosts and not is_loopback(name):
            sentence = "the Host of the request is not a name of this server; add it with --allow-host."
            raise Problem(HTTPStatus.MISDIRECTED_REQUEST, "foreign-host", sentence)

    def check_origin(self, origin: str | None, host: str) -> None:
        """Refuse a request from a page of another server.

        Raises:
            Problem: The page is not this server's, nor allowed.
        """
        if origin is None or origin in self.origins:
            return
        if origin == "null" or urlsplit(origin).netloc.lower() != host.lower():
            sentence = "the request comes from a page of another server; allow its origin with --allow-origin."
            raise Problem(HTTPStatus.FORBIDDEN, "foreign-origin", sentence)


class Guard:
    """ASGI application that checks each request before another application answers it.

    Args:
        app: The other application.
        rules: Who may talk to the server.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with a problem."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        try:
            host = headers.get("host", "")
            self._rules.check_host(host)
            self._rules.check_origin(headers.get("origin"), host)
            authorised = self._rules.knows(token_of(headers))
            scope.setdefault("state", {})["authorised"] = authorised
            # A WebSocket may also send the token in its first message.
            if scope["type"] == "http" and not authorised and _needs_token(scope["path"]):
                sentence = "the request needs the server's token; send it as 'Authorization: Bearer TOKEN'."
                raise Problem(HTTPStatus.UNAUTHORIZED, "wrong-token", sentence)
            if scope["type"] == "http" and scope["path"] not in _UPLOADS:
                receive = _limited(receive, headers.get("content-length", ""))
        except Problem as problem:
            await _refuse(problem, scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message.get("headers", [])}
                added = [(name, value) for name, value in _HEADERS.items() if name not in present]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def token_of(headers: Mapping[str, str]) -> str | None:
    """Return the token of a request, from its header or its cookie; Label Studio sends it as a password."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token:
        return token.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(token, validate=True).decode().partition(":")[2] or None
        except ValueError:
            return None
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return None if cookie is None else cookie.value


def _needs_token(path: str) -> bool:
    return path not in _OPEN and path.startswith(_CLOSED)


def _limited(receive: Receive, declared: str) -> Receive:
    """Limit the body of a request, whether or not its length was announced.

    Raises:
        Problem: The announced length is too large.
    """
    if declared.isdigit() and int(declared) > _LONGEST_BODY:
        raise _too_long()
    left = _LONGEST_BODY

    async def receive_limited() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _too_long()
        return message

    return receive_limited


def _too_long() -> Problem:
    sentence = f"the content of the request is too long; at most {_LONGEST_BODY} bytes are allowed."
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", sentence)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and ":" in host else host


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": problem.code})
        return
    body = json.dumps(problem_document(problem)).encode()
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode()), *_HEADERS.items()]
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": int(problem.status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
