"""The decoding process: reads one source and passes frames on through a pipe, within limits of memory and time.

It is started by ``refervos.serving.decoding``. Requests are lines of JSON on standard input; each reply on standard
output is a length, a JSON header, and for a frame its pixels. Sources are never on the command line, where other users
could read a password in them.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

LENGTH = struct.Struct("<I")

_PLAYABLE = {
    "mp4": {"h264", "av1", "vp9"},
    "webm": {"vp8", "vp9", "av1"},
}
"""Codecs that browsers play, by container, in 8-bit 4:2:0."""


_UNPLAYABLE = {"times": None, "playable": False, "start_time": 0.0, "media_type": "application/octet-stream"}


def main() -> None:
    """Serve requests until standard input ends."""
    output = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)  # a library that prints must not damage the replies
    settings = json.loads(sys.stdin.buffer.readline())
    _limit_memory(int(settings["bytes"]))
    reader = _Reader(float(settings["seconds"]), output)
    for line in sys.stdin.buffer:
        reader.answer(json.loads(line))


class _Reader:
    """The open source of the process."""

    def __init__(self, seconds: float, output: BinaryIO) -> None:
        self._seconds = seconds
        self._output = output
        self._source: Any = None
        self._frames: Iterator[Any] = iter(())

    def answer(self, request: dict[str, Any]) -> None:
        """Answer one request; an error of the input is an answer."""
        from refervos.errors import RefervosError

        _limit_seconds(self._seconds)
        try:
            header, pixels = getattr(self, f"_{request.pop('do')}")(**request)
        except RefervosError as error:
            header, pixels = {"error": type(error).__name__, "sentence": str(error)}, b""
        except MemoryError:
            header, pixels = {"error": "VideoError", "sentence": "The video needs too much memory to decode."}, b""
        text = json.dumps(header).encode()
        self._output.write(LENGTH.pack(len(text)) + text)
        self._output.write(pixels)
        self._output.flush()

    def _open(self, spec: str, start: int, wait: float) -> tuple[dict[str, Any], bytes]:
        from refervos.video import ReconnectPolicy, open_source

        if self._source is not None:
            self._source.close()
        self._source = open_source(spec, start=start, reconnect=ReconnectPolicy(give_up=wait), redirects=False)
        self._frames = iter(self._source)
        info = self._source.info
        return {
            "name": info.name,
            "width": info.width,
            "height": info.height,
            "fps": None if info.fps is None else float(info.fps),
            "frame_count": info.frame_count,
            "live": info.live,
        }, b""

    def _next(self) -> tuple[dict[str, Any], Any]:
        frame = next(self._frames, None)
        if frame is None:
            return {"end": True, "warnings": self._source.warnings}, b""
        height, width = frame.image.shape[:2]
        header = {"index": frame.index, "time": frame.time, "after_gap": frame.after_gap, "h": height, "w": width}
        return {**header, "outages": self._source.losses.outages}, frame.image.data

    def _times(self, path: str) -> tuple[dict[str, Any], bytes]:
        """Read the presentation times of all packets of a video file without decoding them."""
        from av.error import FFmpegError

        from refervos.video.containers import open_input

        times: list[float] = []
        try:
            with open_input(f"file:{path}") as container:
                stream = container.streams.best("video")
                if stream is None or stream.codec_context is None:
                    return dict(_UNPLAYABLE), b""
                codec = stream.codec_context
                names = set(container.format.name.split(","))
                playable = codec.pix_fmt in ("yuv420p", "yuvj420p") and any(
                    kind in names and codec.name.removeprefix("lib") in codecs for kind, codecs in _PLAYABLE.items()
                )
                for packet in container.demux(stream):
                    if packet.pts is not None and packet.size:
                        times.append(float(packet.pts * packet.time_base))
        except (FFmpegError, ValueError, OSError):
            return dict(_UNPLAYABLE), b""
        times.sort()
        start = times[0] if times else 0.0
        relative = [round(each - start, 6) for each in times if math.isfinite(each)]
        media_type = (
            f"video/{next(kind for kind in _PLAYABLE if kind in names)}" if playable else "application/octet-stream"
        )
        return {"times": relative or None, "playable": playable, "start_time": start, "media_type": media_type}, b""


def _limit_memory(size: int) -> None:
    """Limit the address space of this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_seconds(seconds: float) -> None:
    """Limit the processor time until the next request; the system ends the process beyond it."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main()
