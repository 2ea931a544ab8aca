"""Deinterlacing: the two fields of a frame, recorded one after the other, are combined without comb artefacts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
from av.error import FFmpegError


class Deinterlacer:
    """Deinterlacer that returns one frame per frame, and changes only interlaced ones.

    Args:
        always: Whether to deinterlace all frames, also those that are not marked as interlaced.

    Attributes:
        active: Whether any frame has been deinterlaced so far.
    """

    def __init__(self, always: bool = False) -> None:
        self._always = always
        self.active = False

    def process(self, decoded: Iterator[Any]) -> Iterator[Any]:
        """Deinterlace a stream of frames.

        From the first interlaced frame on, each frame is delayed until the next, with which it is compared.

        Args:
            decoded: PyAV frames.

        Yields:
            The same number of frames, with their times.
        """
        graph: _Graph | None = None
        for frame in decoded:
            if graph is not None and graph.size != (frame.width, frame.height, frame.format.name):
                yield from graph.flush()
                graph = None
            if graph is None and (self._always or frame.interlaced_frame):
                graph = _Graph.of(frame, self._always)
                self.active = self.active or graph is not None
            if graph is None:
                yield frame
            else:
                yield from graph.push(frame)
        if graph is not None:
            yield from graph.flush()


class _Graph:
    def __init__(self, frame: Any, always: bool) -> None:
        self.size = (frame.width, frame.height, frame.format.name)
        graph = av.filter.Graph()
        self._entry = graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base=str(frame.time_base or "1/1000"),
        )
        joined = graph.add("bwdif", mode="send_frame", deint="all" if always else "interlaced")
        self._exit = graph.add("buffersink")
        graph.link_nodes(self._entry, joined, self._exit).configure()
        self._graph = graph  # filter contexts do not keep it alive

    @classmethod
    def of(cls, frame: Any, always: bool) -> _Graph | None:
        """Create a graph for frames of this kind; None if they are too small for it."""
        try:
            return cls(frame, always)
        except (FFmpegError, ValueError):
            return None

    def push(self, frame: Any | None) -> Iterator[Any]:
        self._entry.push(frame)
        while True:
            try:
                yield self._exit.pull()
            except (BlockingIOError, EOFError):  # needs the next frame; has no more
                return

    def flush(self) -> Iterator[Any]:
        return self.push(None)
