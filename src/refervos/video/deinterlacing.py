"""Joins the two half pictures of interlaced video, which were taken one after the other, so that nothing is combed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
from av.error import FFmpegError


class Deinterlacer:
    """Passes pictures on, those that are interlaced without their comb; as many come out as go in.

    Args:
        always: Whether pictures that do not say of themselves that they are interlaced are treated as if they did.

    Attributes:
        joined: Whether any picture was deinterlaced so far.
    """

    def __init__(self, always: bool = False) -> None:
        self._always = always
        self.joined = False

    def pictures(self, decoded: Iterator[Any]) -> Iterator[Any]:
        """Passes pictures on.

        From the first interlaced one on each waits for the next, which its other half is compared with.

        Args:
            decoded: PyAV frames.

        Yields:
            As many frames, with their times.
        """
        graph: _Graph | None = None
        for picture in decoded:
            if graph is not None and graph.size != (picture.width, picture.height, picture.format.name):
                yield from graph.rest()
                graph = None
            if graph is None and (self._always or picture.interlaced_frame):
                graph = _Graph.of(picture, self._always)
                self.joined = self.joined or graph is not None
            if graph is None:
                yield picture
            else:
                yield from graph.take(picture)
        if graph is not None:
            yield from graph.rest()


class _Graph:
    def __init__(self, picture: Any, always: bool) -> None:
        self.size = (picture.width, picture.height, picture.format.name)
        graph = av.filter.Graph()
        self._entry = graph.add(
            "buffer",
            video_size=f"{picture.width}x{picture.height}",
            pix_fmt=picture.format.name,
            time_base=str(picture.time_base or "1/1000"),
        )
        joined = graph.add("bwdif", mode="send_frame", deint="all" if always else "interlaced")
        self._exit = graph.add("buffersink")
        graph.link_nodes(self._entry, joined, self._exit).configure()
        self._graph = graph  # contexts do not keep it

    @classmethod
    def of(cls, picture: Any, always: bool) -> _Graph | None:
        """A graph for such pictures; None where they are too small for it."""
        try:
            return cls(picture, always)
        except (FFmpegError, ValueError):
            return None

    def take(self, picture: Any | None) -> Iterator[Any]:
        self._entry.push(picture)
        while True:
            try:
                yield self._exit.pull()
            except (BlockingIOError, EOFError):  # wants the next picture; has given all
                return

    def rest(self) -> Iterator[Any]:
        return self.take(None)
