"""Addresses of streams and files, and how to speak of them without their secrets."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from refervos.errors import VideoError

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "srt"})
HOW_TO_WRITE = "write scheme://host:port/path, with / # ? and @ in a password as %2F, %23, %3F and %40"
_SCHEMES = frozenset({*LIVE_SCHEMES, "http", "https"})

# Recordings; of what else is served, a playlist for one, the name may be the key to it.
_RECORDINGS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".wmv", ".flv", ".gif"}
)


def is_url(spec: str) -> bool:
    """Whether a source is written as scheme://address."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", spec) is not None


def scheme_of(url: str) -> str:
    """What stands before the colon, in lower case."""
    return url.partition(":")[0].lower()


def file_of(spec: str) -> Path | None:
    """The file that a file:// address names; None for what is none.

    Args:
        spec: What the user wrote.

    Returns:
        Its path.

    Raises:
        VideoError: It is on another machine.
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
    """Refuses an address that no waiting makes readable, and what was meant to be one.

    Args:
        spec: An address, or a path that does not exist.

    Raises:
        VideoError: Its scheme is none that is known here, or it is written wrongly.
    """
    scheme = scheme_of(spec)
    if not is_url(spec):
        if scheme in _SCHEMES and ":" in spec:
            raise VideoError(f"What begins with {scheme}: is no file here; an address is written {scheme}://host/path.")
        return
    if scheme not in _SCHEMES:
        raise VideoError(f"{described(spec)} has the unknown scheme {scheme}://; use {', '.join(sorted(_SCHEMES))}.")
    try:
        parts = urlsplit(spec)
        _ = parts.port  # looked at only when asked for
    except ValueError:  # whose words may repeat a part of the password
        raise VideoError(f"{described(spec)} is no address that can be understood; {HOW_TO_WRITE}.") from None


def described(url: str) -> str:
    """How messages name an address: by scheme and host alone, as keys to streams stand everywhere else in it."""
    return f"'{scheme_of(url)}://{_host(url) or '...'}'"


def name_of(url: str) -> str:
    """A name for what an address gives, for outputs to be named after: of a recording its own, else the host's."""
    path = PurePosixPath(unquote(re.split("[?#]", url, maxsplit=1)[0]))
    if _host(url) and scheme_of(url) not in LIVE_SCHEMES and path.suffix.lower() in _RECORDINGS:
        return path.stem
    # Without points, behind which a file name would have its kind.
    return re.sub("[^0-9A-Za-z-]+", "-", _host(url)).strip("-") or "stream"


def without_secrets(spec: str) -> str:
    """A path as it can be shown that may have been meant to be an address with a password."""
    return re.sub(r"[^\s/:@]+:[^\s\\@]+@", "...@", spec)


def _host(url: str) -> str:
    """Host and port; nothing where a password with a slash in it makes it doubtful what is host."""
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if "@" in rest[len(authority) :]:
        return ""
    host = "".join(letter for letter in authority.rpartition("@")[2] if letter.isprintable())
    # What stands where the port should and is none may be a password whose host was left out.
    found = re.match(r"(\[[0-9A-Fa-f:.]*\]?|[^:]*)(:[0-9]+$)?", host)
    return "".join(part for part in found.groups() if part) if found else ""
