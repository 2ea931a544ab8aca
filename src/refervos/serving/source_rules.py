"""Which sources beside uploads may be opened: files in allowed folders, cameras, and streams on allowed hosts."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from refervos.serving.problems import Problem
from refervos.video.addresses import check_address, described

_SCHEMES = frozenset({"rtsp", "rtsps", "http", "https"})


@dataclass(frozen=True)
class SourceRules:
    """What the operator allows.

    Attributes:
        files: Folders whose files may be opened by path.
        cameras: Whether cameras of this machine may be opened.
        hosts: Hosts whose streams may be opened, as ``host`` or ``host:port``. Redirects are not followed,
            so that an allowed host cannot lead elsewhere.
    """

    files: tuple[Path, ...] = ()
    cameras: bool = False
    hosts: frozenset[str] = frozenset()

    def check_file(self, path: str) -> Path:
        """Return the resolved path of an allowed file.

        Raises:
            Problem: It is not in an allowed folder, or does not exist; the two are not distinguished.
        """
        try:
            resolved = Path(path).resolve(strict=True)
            allowed = any(resolved.is_relative_to(folder.resolve()) for folder in self.files)
            if allowed and resolved.is_file():
                return resolved
        except (OSError, ValueError, RuntimeError):
            pass  # the same answer, so that nobody learns which files exist
        raise _forbidden("this file is not in a folder that the operator allows (--allow-files FOLDER), or is missing.")

    def check_camera(self, device: str) -> str:
        """Return the source of a camera of this machine.

        Raises:
            Problem: Cameras are not allowed, or the name is not a number.
        """
        if not self.cameras:
            raise _forbidden(
                "cameras of the server are not allowed; the operator allows them with --allow-sources camera."
            )
        if not (device.isascii() and device.isdigit() and len(device) < 4):
            raise _forbidden("a camera is given by its number, such as 0.")
        return f"camera:{device}"

    def check_url(self, url: str) -> str:
        """Return an address that may be opened.

        Raises:
            Problem: Its scheme or host is not allowed.
            VideoError: It is malformed.
        """
        check_address(url)
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
        if scheme not in _SCHEMES or not host:
            raise _forbidden(f"addresses of the scheme {scheme}: are not allowed; use rtsp, rtsps, http or https.")
        if host in self.hosts or f"{host}:{parts.port}" in self.hosts:
            return url
        raise _forbidden(
            f"streams of {described(url)} are not allowed; the operator allows them with --allow-sources HOST."
        )


def _forbidden(sentence: str) -> Problem:
    return Problem(HTTPStatus.FORBIDDEN, "forbidden-source", sentence)
