"""Opens anything that frames can come from: files, folders, images, arrays, cameras and streams."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sized
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from threading import Event
from typing import Literal, get_args

import numpy as np
from PIL import Image

from refervos.errors import EndOfVideoError, VideoError
from refervos.files.images import SUFFIXES
from refervos.video.addresses import check_address, file_of, is_url, without_secrets
from refervos.video.buffered import BufferedReader
from refervos.video.frames import Frame, ImageArray, SourceInfo, frame_time, frames_text, rgb_from_array
from refervos.video.live import LiveReader, ReconnectPolicy, await_connection
from refervos.video.media import MediaReader, Treatment, exact_fps, open_camera, open_file, open_url
from refervos.video.reader import Reader, Source
from refervos.video.stills import FolderReader, ImageFileReader, natural_key

__all__ = ["DEFAULT_RECONNECT", "Late", "SourceSpec", "natural_key", "open_source", "read_video"]

SourceSpec = (
    str | Path | np.ndarray | Iterable[np.ndarray] | Iterable[Frame] | Iterable[np.ndarray | Image.Image | Frame]
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
) -> Source:
    """Opens a source of frames.

    Args:
        spec: One of
            - a video file (mp4, mov, mkv, webm, avi, gif and what else FFmpeg decodes),
            - a folder of image files, read in natural order (2.jpg before 10.jpg); what else is in it is told in
              `notes`,
            - an image file; the pictures of a TIFF stack or of an animated WebP, PNG or AVIF file are frames,
            - "camera:0", or "camera:" and the name of a device,
            - an rtsp://, http:// or https:// address; a file:// address is that file,
            - a uint8 array (T, H, W, 3), (T, H, W, 4), (T, H, W, 1) or (T, H, W),
            - any iterable of uint8 arrays (H, W, 3), (H, W, 4), (H, W, 1) or (H, W), of PIL images, or of
              `Frame`.
        fps: Frames per second of frames that carry no times of their own, from which their times then follow;
            for a camera, the rate asked of it. A video file keeps its own times.
        start: First frame to yield; its index, time and name stay what they are in the whole.
        stop: Frame before which to end; None for all.
        live: Whether frames come whether or not they are asked for, as those of a camera; None to tell by the source:
            cameras, rtsp, rtmp, udp, rtp, srt, pictures pushed over HTTP (multipart/x-mixed-replace) and HLS without
            end are live.
        late: What happens to frames that come faster than they are asked for. "drop": the newest one wins, default
            for live sources. "queue": up to 30 wait, then the oldest is dropped. "wait": they are read one by one as
            they are asked for and none is dropped here, default for recordings. Dropped frames are counted in the
            source's `losses` and keep their index.
        reconnect: How to connect again to a camera or stream that went away; None to end then.
        ahead: Frames of a recording to read ahead, in a thread, while the ones before are being worked on.
        deinterlace: Whether the two half pictures of interlaced frames are joined; None where frames say that they are
            interlaced.
        square_pixels: Whether video whose pixels are not square is stretched to what it looks like; without, frames
            and masks have the size that is stored.

    Returns:
        The source, to be closed or used as a context manager.

    Raises:
        VideoError: It does not exist or cannot be read as any of these.
    """
    rate = exact_fps(fps)
    if start < 0 or (stop is not None and stop <= start):
        raise VideoError(f"start is {start} and stop is {stop}; start must be at least 0 and stop above start.")
    if late not in (None, *get_args(Late)):
        raise VideoError(f"late is {late!r}; it must be one of {', '.join(get_args(Late))}.")
    if ahead < 0:
        raise VideoError(f"ahead is {ahead}; it must be at least 0 frames.")
    ended = Event()
    reader = _open(spec, rate, start, stop, live, reconnect, ended, Treatment(deinterlace, square_pixels))
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
    treatment: Treatment,
) -> Reader:
    """Opens a source without a buffer."""
    if isinstance(spec, str):
        spec = file_of(spec) or spec
    if isinstance(spec, str):
        if spec.startswith("camera:"):
            device = spec.removeprefix("camera:") or "0"
            connect = partial(open_camera, device, fps=rate, start=start, stop=stop, live=live, treatment=treatment)
            return _open_live(connect, reconnect, start, stop, ended)
        if is_url(spec):
            check_address(spec)
            connect = partial(open_url, spec, fps=rate, start=start, stop=stop, live=live, treatment=treatment)
            return _open_live(connect, reconnect, start, stop, ended)
    if live and isinstance(spec, (str, Path, np.ndarray)):
        named = "An array" if isinstance(spec, np.ndarray) else f"'{spec}'"
        raise VideoError(f"{named} is a recording; only cameras, addresses and iterables can be live.")
    if isinstance(spec, (str, Path)):
        return _open_path(spec, rate, start, stop, treatment)
    if isinstance(spec, np.ndarray):
        return _ArrayReader(spec, rate, start, stop)
    if isinstance(spec, Iterable) and not isinstance(spec, bytes):
        return _IterableReader(spec, rate, start, stop, live=bool(live))
    raise VideoError(
        f"A {type(spec).__name__} is no source of frames; "
        "give a path, an address, camera:0, a uint8 array or an iterable of frames."
    )


def _open_live(
    connect: Callable[[], MediaReader], reconnect: ReconnectPolicy | None, start: int, stop: int | None, ended: Event
) -> Reader:
    """Connects for the first time; what turns out to be a recording is read as one."""
    try:
        first = connect()
    except VideoError:
        if reconnect is None or not reconnect.wait:
            raise
        awaited = await_connection(connect, reconnect, pause=ended.wait)
        if awaited is None:
            raise
        first = awaited
    if not first.info.live:
        return first
    return LiveReader(connect, first, reconnect, start=start, stop=stop, pause=ended.wait)


def read_video(path: str | Path) -> ImageArray:
    """Reads all frames of a file or folder at once, for short videos.

    Args:
        path: Anything with a path that `open_source` takes.

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


def _open_path(spec: str | Path, fps: Fraction | None, start: int, stop: int | None, treatment: Treatment) -> Reader:
    if not str(spec):
        raise VideoError("The path of the source is empty; give a video file, a folder of frames or an image.")
    try:
        path = Path(spec).expanduser()
        if path.is_dir():
            return FolderReader(path, fps, start, stop)
        if not path.exists():
            check_address(str(spec))
            shown = without_secrets(str(spec))
            raise VideoError(f"'{shown}' does not exist; give a video file, a folder of frames or an image.")
        if not path.is_file():
            raise VideoError(f"'{spec}' is neither a file nor a folder; for a camera write camera:0.")
        # FFmpeg plays GIF files, and knows when one is cut short.
        if path.suffix.lower() in SUFFIXES - {".gif"}:
            return ImageFileReader(path, fps, start, stop)
        return open_file(path, fps=fps, start=start, stop=stop, treatment=treatment)
    # A name too long, with a null byte, of an unknown user, in a folder that may not be read.
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        shown = ascii(without_secrets(str(spec)))[:200]
        raise VideoError(f"{shown} cannot be opened ({reason}); give a path that may be read.") from error


class _ArrayReader(Reader):
    """Frames of one array."""

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
    """Frames that come one by one from elsewhere; what that raises passes through unchanged."""

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
            # Stopping here rather than at the next item keeps a live iterable from being asked for one too
            # many.
            if self._stop is not None and count >= self._stop:
                return
        if count <= self._start:
            raise VideoError(f"The iterable gave {frames_text(count)}, so there is none from frame {self._start} on.")
