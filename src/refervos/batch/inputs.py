"""Input videos: on this machine, or anywhere that fsspec reaches."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refervos.batch.storage import is_address, open_file_system, reason_of
from refervos.errors import RefervosError, VideoError
from refervos.video import Source, open_source

LARGE = 2**30
"""Size in bytes above which a remote video is copied to this machine before it is read."""

_LOOKUPS = 32
"""Number of concurrent requests for facts of remote videos."""

_VERSION_FIELDS = (
    "ETag",
    "etag",
    "md5Hash",
    "md5",
    "Content-MD5",
    "generation",
    "LastModified",
    "last_modified",
    "mtime",
)

_MISSING = "missing"


@dataclass(frozen=True)
class InputFacts:
    """Facts of a video file, found without reading it.

    Attributes:
        version: Text that changes with the content: an entity tag, or size and time of modification; ``missing`` if the
            file cannot be found.
        size: Size in bytes; None if unknown.
        problem: Why a server gave no facts, unless it answered that there is no such file; None without a problem.
    """

    version: str
    size: int | None = None
    problem: str | None = None

    @property
    def missing(self) -> bool:
        """Whether the file could not be found."""
        return self.version == _MISSING


def facts_of(uri: str) -> InputFacts:
    """Return the facts of one video.

    Args:
        uri: Absolute path or address.

    Raises:
        MissingDependencyError: When the package for this kind of address is not installed.
    """
    if not is_address(uri):
        try:
            found = os.stat(uri.removeprefix("file://"))
        except (OSError, ValueError):
            return InputFacts(_MISSING)
        return InputFacts(f"{found.st_size}-{found.st_mtime_ns}", found.st_size)
    file_system, path = open_file_system(uri)
    try:
        info = file_system.info(path)
    except FileNotFoundError:
        return InputFacts(_MISSING)
    except Exception as error:  # each file system has errors of its own; the worker will report this one
        return InputFacts(_MISSING, problem=reason_of(error))
    size = info.get("size")
    tags = [str(info[field]) for field in _VERSION_FIELDS if info.get(field)]
    version = tags[0] if tags else f"{size}-{info.get('created', '')}"
    return InputFacts(hashlib.sha256(version.encode()).hexdigest()[:16], size)


def facts_of_all(uris: list[str]) -> list[InputFacts]:
    """Return the facts of many videos, in order."""
    with ThreadPoolExecutor(_LOOKUPS) as threads:
        return list(threads.map(facts_of, uris))


@contextlib.contextmanager
def open_input(uri: str, start: int = 0, end: int | None = None) -> Iterator[Source]:
    """Open a video wherever it is.

    Remote videos are read by ranges as the decoder needs them; those above ``LARGE``, and those on servers without
    ranges, are first copied to this machine.

    Args:
        uri: Absolute path or address.
        start: First frame to yield.
        end: Frame before which to end; None for all.

    Yields:
        The frames.

    Raises:
        VideoError: When the video cannot be found or read.
    """
    with contextlib.ExitStack() as stack:
        spec: Any = uri.removeprefix("file://")
        if is_address(uri):
            spec = stack.enter_context(_open_remote(uri))
        yield stack.enter_context(open_source(spec, start=start, stop=end))


@contextlib.contextmanager
def _open_remote(uri: str) -> Iterator[Any]:
    """Yield an open file, or the path of a copy on this machine."""
    name = f"'{uri}'"
    file_system, path = open_file_system(uri)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(file_system.open(path, "rb", block_size=2**20))
            size = getattr(file, "size", None)
            if size == 0:
                raise VideoError(f"{name} is empty (0 bytes); give a video file.")
            if size is not None and size <= LARGE and file.seekable():
                found: Any = file
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="refervos-"))
                found = Path(folder) / (Path(path).name or "video")
                file_system.get_file(path, str(found))
        except RefervosError:
            raise
        except FileNotFoundError as error:
            raise VideoError(f"{name} does not exist; check the address.") from error
        except Exception as error:  # each file system has errors of its own
            raise VideoError(
                f"{name} cannot be read ({reason_of(error)}); check the address and the credentials."
            ) from error
        yield found
