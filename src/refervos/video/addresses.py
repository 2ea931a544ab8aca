"""Addresses of streams and files, and how to show them without passwords and keys."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from refervos.errors import VideoError

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "srt"})
HOW_TO_WRITE = "write scheme://host:port/path, with / # ? and @ in a password as %2F, %23, %3F and %40"
_SCHEMES = frozenset({*LIVE_SCHEMES, "http", "https"})

# Recordings. The name of anything else, such as a playlist, may be a secret stream key.
_RECORDINGS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".wmv", ".flv", ".gif"}
)


def is_url(spec: str) -> bool:
    """Return whether a source is written as scheme://address."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", spec) is not None


def scheme_of(url: str) -> str:
    """Return the scheme of an address in lower case."""
    return url.partition(":")[0].lower()


def file_of(spec: str) -> Path | None:
    """Return the path of a file:// address, None for anything else.

    Args:
        spec: Source as the user wrote it.

    Returns:
        The path.

    Raises:
        VideoError: The file is on another machine.
    """
    if not re.match(r"file:/", spec, re.IGNORECASE):
        return None
    rest = spec[len("file:") :]
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host not in ("", "localhost"):
        raise VideoError(f"'{spec}' names a file on the machine '{host}'; write file:///path for one on this machine.")
    return Path(url2pathname(path))


def check_address(spec: str) -> None:
    """Refuse an address that is malformed or has an unknown scheme, and paths that look like one.

    Args:
        spec: An address, or a path that does not exist.

    Raises:
        VideoError: The scheme is unknown, or the address is malformed.
    """
    scheme = scheme_of(spec)
    if not is_url(spec):
        if scheme in _SCHEMES and ":" in spec:
            raise VideoError(f"No file begins with {scheme}: here; if it is an address, write {scheme}://host/path.")
        return
    if scheme not in _SCHEMES:
        raise VideoError(f"{described(spec)} has the unknown scheme {scheme}://; use {', '.join(sorted(_SCHEMES))}.")
    try:
        parts = urlsplit(spec)
        _ = parts.port  # parsed only on access
    except ValueError:  # its text may repeat a part of the password
        raise VideoError(f"{described(spec)} is not a valid address; {HOW_TO_WRITE}.") from None


def described(url: str) -> str:
    """Return an address for messages: scheme and host only, since stream keys can be anywhere else in it."""
    return f"'{scheme_of(url)}://{_host(url) or '...'}'"


def name_of(url: str) -> str:
    """Return a name for outputs: the file name of a recording, or else the host."""
    path = PurePosixPath(unquote(re.split("[?#]", url, maxsplit=1)[0]))
    if _host(url) and scheme_of(url) not in LIVE_SCHEMES and path.suffix.lower() in _RECORDINGS:
        return path.stem
    # Without dots, which would start a suffix.
    return re.sub("[^0-9A-Za-z-]+", "-", _host(url)).strip("-") or "stream"


def without_secrets(spec: str) -> str:
    """Return a path with any password removed, in case it was meant to be an address."""
    return re.sub(r"[^\s/:@]+:[^\s\\@]+@", "...@", spec)


def _host(url: str) -> str:
    """Return host and port; empty if a slash in a password makes the host ambiguous."""
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if "@" in rest[len(authority) :]:
        return ""
    host = "".join(character for character in authority.rpartition("@")[2] if character.isprintable())
    # Text in place of a port may be a password whose host is missing.
    found = re.match(r"(\[[0-9A-Fa-f:.]*\]?|[^:]*)(:[0-9]+$)?", host)
    return "".join(part for part in found.groups() if part) if found else ""
