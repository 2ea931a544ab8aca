"""Open any source of frames: files, folders, images, arrays, cameras and streams."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sized
from dataclasses import replace
from fractions import Fraction
from functools import partial
from io import IOBase
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, Literal, cast, get_args

import numpy as np
from PIL import Image

from refervos.errors import EndOfVideoError, VideoError
from refervos.files.images import SUFFIXES
from refervos.video.addresses import check_address, file_of, is_url, without_secrets
from refervos.video.buffered import BufferedReader
from refervos.video.frames import Frame, ImageArray, SourceInfo, frame_time, frames_text, rgb_from_array
from refervos.video.live import LiveReader, ReconnectPolicy, await_connection
from refervos.video.media import DecodingOptions, MediaReader, exact_fps, open_binary, open_camera, open_file, open_url
from refervos.video.reader import Reader, Source
from refervos.video.stills import FolderReader, ImageFileReader, natural_key

__all__ = ["DEFAULT_RECONNECT", "Late", "SourceSpec", "natural_key", "open_source", "read_video"]

SourceSpec = (
    str
    | Path
    | BinaryIO
    | np.ndarray
    | Iterable[np.ndarray]
    | Iterable[Frame]
    | Iterable[np.ndarray | Image.Image | Frame]
)


Late = Literal["drop", "queue", "wait"]

DEFAULT_RECONNECT = ReconnectPolicy()
QUEUE_LENGTH = 30


def open_source(
    spec: SourceSpec,
    *,
    fps: float | Fraction | None = None,
    start: int = 0,
    stop: int | None = None,
    live: bool | None = None,
    late: Late | None = None,
    reconnect: ReconnectPolicy | None = DEFAULT_RECONNECT,
    ahead: int = 0,
    deinterlace: bool | None = None,
    square_pixels: bool = True,
    redirects: bool = True,
) -> Source:
    """Open a source of frames.

    Args:
        spec: One of
            - a video file (mp4, mov, mkv, webm, avi, gif and others that FFmpeg decodes),
            - a folder of image files, read in natural order (2.jpg before 10.jpg); other files in it are listed in
              ``notes``,
            - an image file; the images of a TIFF stack or of an animated WebP, PNG or AVIF file are frames,
            - "camera:0", or "camera:" and the name of a device,
            - an rtsp://, http:// or https:// address, or a file:// address of a file,
            - a video file that is already open in binary mode and can seek, such as one on an object store; it stays
              open,
            - a uint8 array (T, H, W, 3), (T, H, W, 4), (T, H, W, 1) or (T, H, W),
            - any iterable of uint8 arrays (H, W, 3), (H, W, 4), (H, W, 1) or (H, W), of PIL images, or of
              ``Frame``.
        fps: Frame rate of frames without times, from which their times are computed; for a camera, the rate to
            request. A video file keeps its own times.
        start: First frame to yield; its index, time and name are those in the whole source.
        stop: Frame before which to end; None for all.
        live: Whether frames arrive at their own pace, as from a camera. None to decide by the source: cameras, rtsp,
            rtmp, udp, rtp, srt, images pushed over HTTP (multipart/x-mixed-replace) and HLS without an end are live.
        late: Handling of frames that arrive faster than they are read. "drop" keeps only the newest, default for live
            sources; "queue" keeps up to 30 and then drops the oldest; "wait" reads frames one by one on request and
            drops none, default for recordings. Dropped frames are counted in the source's ``losses`` and in the
            indices.
        reconnect: Reconnection policy of a camera or stream; None to end when it disconnects.
        ahead: Number of frames of a recording to decode ahead in a thread.
        deinterlace: Whether to deinterlace all frames or none; None for frames that are marked as interlaced.
        square_pixels: Whether to stretch video with non-square pixels to its displayed size; if False, frames and
            masks have the stored size.
        redirects: Whether an http address may lead to others, by a redirect or a playlist (HLS). A server that opens
            addresses for others forbids it, because they could lead into its own network.

    Returns:
        The source; close it or use it as a context manager.

    Raises:
        VideoError: It does not exist or is not readable.
    """
    rate = exact_fps(fps)
    if start < 0 or (stop is not None and stop <= start):
        raise VideoError(f"start is {start} and stop is {stop}; start must be at least 0 and stop above start.")
    if late not in (None, *get_args(Late)):
        raise VideoError(f"late is {late!r}; it must be one of {', '.join(get_args(Late))}.")
    if ahead < 0:
        raise VideoError(f"ahead is {ahead}; it must be at least 0 frames.")
    ended = Event()
    decoding = DecodingOptions(deinterlace, square_pixels)
    reader = _open(spec, rate, start, stop, live, reconnect, ended, decoding, redirects)
    late = late or ("drop" if reader.info.live else "wait")
    if late == "wait":
        return BufferedReader(reader, ahead, drops=False) if ahead and not reader.info.live else reader
    return BufferedReader(reader, 1 if late == "drop" else QUEUE_LENGTH, drops=True, ended=ended)


def _open(
    spec: SourceSpec,
    rate: Fraction | None,
    start: int,
    stop: int | None,
    live: bool | None,
    reconnect: ReconnectPolicy | None,
    ended: Event,
    decoding: DecodingOptions,
    redirects: bool,
) -> Reader:
    """Open a source without a buffer."""
    if isinstance(spec, str):
        spec = file_of(spec) or spec
    if isinstance(spec, str):
        if spec.startswith("camera:"):
            device = spec.removeprefix("camera:") or "0"
            connect = partial(open_camera, device, fps=rate, start=start, stop=stop, live=live, decoding=decoding)
            return _open_live(connect, reconnect, start, stop, ended)
        if is_url(spec):
            check_address(spec)
            options: dict[str, Any] = {"live": live, "decoding": decoding, "redirects": redirects}
            connect = partial(open_url, spec, fps=rate, start=start, stop=stop, **options)
            return _open_live(connect, reconnect, start, stop, ended)
    if live and isinstance(spec, (str, Path, np.ndarray)):
        named = "An array" if isinstance(spec, np.ndarray) else f"'{spec}'"
        raise VideoError(f"{named} is a recording; only cameras, addresses and iterables can be live.")
    if isinstance(spec, (str, Path)):
        return _open_path(spec, rate, start, stop, decoding)
    if isinstance(spec, np.ndarray):
        return _ArrayReader(spec, rate, start, stop)
    if isinstance(spec, IOBase) or (hasattr(spec, "read") and hasattr(spec, "seek")):
        return open_binary(cast(BinaryIO, spec), fps=rate, start=start, stop=stop, decoding=decoding)
    if isinstance(spec, Iterable) and not isinstance(spec, bytes):
        return _IterableReader(spec, rate, start, stop, live=bool(live))
    raise VideoError(
        f"A {type(spec).__name__} is not a source of frames; "
        "give a path, an address, camera:0, a uint8 array or an iterable of frames."
    )


def _open_live(
    connect: Callable[[], MediaReader], reconnect: ReconnectPolicy | None, start: int, stop: int | None, ended: Event
) -> Reader:
    """Connect for the first time; if the source is a recording, read it as one."""
    try:
        first = connect()
    except VideoError:
        if reconnect is None or not reconnect.wait:
            raise
        connected = await_connection(connect, reconnect, pause=ended.wait)
        if connected is None:
            raise
        first = connected
    if not first.info.live:
        return first
    return LiveReader(connect, first, reconnect, start=start, stop=stop, pause=ended.wait)


def read_video(path: str | Path) -> ImageArray:
    """Read all frames of a file or folder at once, for short videos.

    Args:
        path: Any file or folder that ``open_source`` accepts.

    Returns:
        uint8 (T, H, W, 3).

    Raises:
        VideoError: It cannot be read, or its frames differ in size.
    """
    with open_source(path) as source:
        images = [frame.image for frame in source]
    if len({image.shape for image in images}) > 1:
        raise VideoError(f"'{path}' has frames of different sizes; read them one by one with open_source.")
    return np.stack(images)


def _open_path(
    spec: str | Path, fps: Fraction | None, start: int, stop: int | None, decoding: DecodingOptions
) -> Reader:
    if not str(spec):
        raise VideoError("The path of the source is empty; give a video file, a folder of frames or an image.")
    try:
        path = Path(spec).expanduser()
        if path.is_dir():
            return FolderReader(path, fps, start, stop)
        if not path.exists():
            check_address(str(spec))
            name = without_secrets(str(spec))
            raise VideoError(f"'{name}' does not exist; give a video file, a folder of frames or an image.")
        if not path.is_file():
            raise VideoError(f"'{spec}' is neither a file nor a folder; for a camera write camera:0.")
        # FFmpeg reads GIF files, and detects truncated ones.
        if path.suffix.lower() in SUFFIXES - {".gif"}:
            return ImageFileReader(path, fps, start, stop)
        return open_file(path, fps=fps, start=start, stop=stop, decoding=decoding)
    # The name is too long, has a null byte or an unknown user, or its folder is not readable.
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        name = ascii(without_secrets(str(spec)))[:200]
        raise VideoError(f"{name} cannot be opened ({reason}); give a readable path.") from error


class _ArrayReader(Reader):
    """Source of the frames of an array."""

    def __init__(self, array: np.ndarray, fps: Fraction | None, start: int, stop: int | None) -> None:
        wanted = "a video is uint8 of shape (T, H, W, 3), (T, H, W, 4), (T, H, W, 1) or (T, H, W)"
        shape = array.shape
        if array.dtype != np.uint8:
            raise VideoError(f"The array has dtype {array.dtype}; {wanted}, values 0 to 255.")
        if array.ndim == 3 and shape[2] in (1, 3, 4):
            raise VideoError(f"The array of shape {shape} looks like a single image; give image[None] for one frame.")
        if array.ndim not in (3, 4) or 0 in shape or (array.ndim == 4 and shape[3] not in (1, 3, 4)):
            raise VideoError(f"The array has shape {shape}; {wanted}.")
        self._array = array
        self._chosen = range(len(array))[start:stop]
        if not self._chosen:
            raise EndOfVideoError(
                f"The array has only {frames_text(len(array))}, so none is left from frame {start} on."
            )
        super().__init__(SourceInfo("array", shape[2], shape[1], fps, len(self._chosen), still=len(array) == 1))

    def _generate(self) -> Generator[Frame, None, None]:
        for index in self._chosen:
            image = rgb_from_array(self._array[index], f"frame {index} of the array")
            yield Frame(index, image, frame_time(index, self.info.fps))


class _IterableReader(Reader):
    """Source of the frames of an iterable, whose exceptions are passed on unchanged."""

    def __init__(self, frames: Iterable, fps: Fraction | None, start: int, stop: int | None, live: bool) -> None:
        self._items = frames
        self._start, self._stop = start, stop
        count = None
        if isinstance(frames, Sized):
            count = len(range(len(frames))[start:stop])
        super().__init__(SourceInfo("frames", fps=fps, frame_count=count, live=live))

    def _generate(self) -> Generator[Frame, None, None]:
        count = 0
        for index, item in enumerate(self._items):
            count = index + 1
            if index >= self._start:
                if isinstance(item, Frame):
                    image = rgb_from_array(item.image, f"frame {index} of the iterable")
                    yield replace(item, index=index, image=image)
                else:
                    image = rgb_from_array(item, f"frame {index} of the iterable")
                    yield Frame(index, image, frame_time(index, self.info.fps))
            # Stop here, without requesting another item from a live iterable.
            if self._stop is not None and count >= self._stop:
                return
        if count <= self._start:
            raise VideoError(
                f"The iterable had only {frames_text(count)}, so none is left from frame {self._start} on."
            )
