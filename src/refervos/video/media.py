"""Video files, cameras and network streams, decoded by FFmpeg through PyAV."""

from __future__ import annotations

import contextlib
import errno
import math
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import av
from av.error import FFmpegError
from av.format import Flags as ContainerFlags

from refervos.errors import EndOfVideoError, VideoError
from refervos.files.images import MAX_PIXELS, refuse_large
from refervos.video.addresses import HOW_TO_WRITE, LIVE_SCHEMES, described, name_of, scheme_of
from refervos.video.colours import Converter
from refervos.video.containers import open_input
from refervos.video.deinterlacing import Deinterlacer
from refervos.video.frames import Frame, SourceInfo, frames_text
from refervos.video.reader import Reader
from refervos.video.timeline import Timeline
from refervos.video.truncation import is_heif_image, truncation_of

# In a damaged file the demuxer may fail several times in a row before it recovers; in a broken one it never does.
_DEMUX_ATTEMPTS = 32
_NETWORK_TIMEOUT = 15.0
# Frames pushed over HTTP have no timestamps, and FFmpeg invents some; the time of arrival is more accurate.
_CLOCKLESS = {"mpjpeg"}
_MICROSECOND = Fraction(1, 1_000_000)
_DEVICES = {"v4l2", "dshow", "avfoundation"}
_VIDEO_KINDS = "mp4, mov, mkv, webm, avi or gif"


@dataclass(frozen=True)
class DecodingOptions:
    """Options for decoded frames.

    Attributes:
        deinterlace: Whether to deinterlace; None for frames that are marked as interlaced.
        square_pixels: Whether to stretch non-square pixels.
    """

    deinterlace: bool | None = None
    square_pixels: bool = True


@dataclass(frozen=True)
class _Opened:
    """An open container and its name in messages."""

    container: Any
    described: str
    name: str
    path: Path | None
    live: bool
    url: str | None = None
    file: BinaryIO | None = None

    @property
    def whole(self) -> Path | BinaryIO | None:
        """The media file, whose size can be compared with the one stored in it; None for devices and streams."""
        return self.file if self.path is None else self.path


class MediaReader(Reader):
    """Frames of a video file, camera or network stream.

    The first frame is decoded on opening, so that unreadable media fail there and the size is known.
    Packets that cannot be decoded are skipped and counted in a warning; a stream that breaks off ends with a
    warning.

    Attributes:
        described: Name of the source in messages.
        damaged: Number of packets skipped so far.
        heard: Time of the last packet, in seconds of ``time.monotonic``.
        end: Reason why the stream broke off; None if it did not.
    """

    def __init__(
        self,
        opened: _Opened,
        *,
        fps: Fraction | None,
        start: int = 0,
        stop: int | None = None,
        decoding: DecodingOptions | None = None,
    ) -> None:
        decoding = decoding or DecodingOptions()
        self._opened = opened
        self.described = opened.described
        self._start, self._stop = start, stop
        self.damaged = 0
        self.heard = time.monotonic()
        self.end: str | None = None
        self._count: int | None = None  # number of frames, once the end has been reached
        try:
            self._stream = _video_stream(opened)
            self._truncation = truncation_of(opened.whole) if opened.whole is not None else None
            codec = self._stream.codec_context
            refuse_large(self.described, codec.width, codec.height)
            # Frames that grow later are refused by the decoder before it allocates memory.
            codec.options = {"max_pixels": str(MAX_PIXELS)}
            self._converter = Converter(
                self.described,
                square_pixels=decoding.square_pixels,
                camera=bool(_DEVICES & set(opened.container.format.name.split(","))),
            )
            self._deinterlacer = Deinterlacer(always=decoding.deinterlace is True)
            self._decoded = self._decode()
            if decoding.deinterlace is not False:
                self._decoded = self._deinterlacer.process(self._decoded)
            self._aspects = self._initial_aspects()
            self._first = next(self._decoded, None)
            if self._first is None:
                raise VideoError(self._nothing_decoded())
            super().__init__(self._describe(self._first, fps))
        except BaseException:
            opened.container.close()
            raise

    def _describe(self, first: Any, fps: Fraction | None) -> SourceInfo:
        stream, container = self._stream, self._opened.container
        rate = stream.average_rate or stream.guessed_rate or fps
        if rate is not None and not 0 < rate < 10_000:
            rate = fps
        count: int | None = None if self._opened.live else stream.frames or None
        if count is None and rate is not None and not self._opened.live:
            if stream.duration:
                count = round(stream.duration * stream.time_base * rate)
            elif container.duration and container.duration > 0:
                count = round(Fraction(container.duration, av.time_base) * rate)
        if count is not None:
            count = max(0, min(count, self._stop if self._stop is not None else count) - self._start)
        height, width = self._converter.size(first, self._aspect())
        return SourceInfo(
            name=self._opened.name,
            width=width,
            height=height,
            fps=rate,
            frame_count=count,
            live=self._opened.live,
            path=self._opened.path,
            url=self._opened.url,
            has_audio=bool(container.streams.audio),
            start_time=self._clock(first) or 0.0,
        )

    def _generate(self) -> Generator[Frame, None, None]:
        first, self._first = self._first, None
        timeline = Timeline(
            self.info.start_time,
            1 / float(self.info.fps) if self.info.fps else None,
            may_leap=bool(self._opened.container.format.flags & ContainerFlags.ts_discont.value),
        )
        index = -1
        for decoded in _chain(first, self._decoded):
            index += 1
            seconds = timeline.at(self._clock(decoded))
            if index >= self._start:
                yield Frame(index, self._converter.rgb(decoded, self._aspect()), seconds)
            # Stop here rather than at the next frame, which would mean waiting for a camera.
            if self._stop is not None and index + 1 >= self._stop:
                return
        self._count = index + 1
        if self._count <= self._start:
            raise EndOfVideoError(
                f"{self._opened.described} has only {frames_text(self._count)}, so none is left from frame "
                f"{self._start} on."
            )

    def _initial_aspects(self) -> tuple[Fraction | None, Fraction | None]:
        """Return the pixel aspect ratio of the container (or else the stream), and that of the stream.

        The first takes precedence, as in players, until a broadcast changes the second.
        """
        stream = self._stream
        return stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio

    def _aspect(self) -> Fraction | None:
        first, coded = self._aspects
        now = self._stream.codec_context.sample_aspect_ratio
        return first if now == coded else now

    def _clock(self, decoded: Any) -> float | None:
        """Return the timestamp of a frame in seconds; None if it has none."""
        return None if decoded.pts is None else float(decoded.pts * (decoded.time_base or self._stream.time_base))

    def _decode(self) -> Iterator[Any]:
        container, stream = self._opened.container, self._stream
        packets = container.demux(stream)
        clockless = container.format.name in _CLOCKLESS
        failures = 0
        waiting_since: float | None = None
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except FFmpegError as error:
                packets = container.demux(stream)
                if error.errno == errno.EAGAIN and self._opened.live:
                    # Some camera drivers return EAGAIN instead of blocking.
                    waiting_since = waiting_since or time.monotonic()
                    if time.monotonic() - waiting_since < _NETWORK_TIMEOUT:
                        time.sleep(0.005)
                        continue
                failures += 1
                if self._opened.whole is None or failures >= _DEMUX_ATTEMPTS:
                    self.end = error.strerror or "it broke off"
                    yield from self._flush()
                    return
                continue
            waiting_since = None
            if packet.size:  # an empty packet at the end flushes the decoder
                self.heard = time.monotonic()
            if self._truncation is not None and packet.is_corrupt:
                continue  # the truncated packet, whose frame would be half gray
            try:
                frames = stream.decode(packet)
            except FFmpegError:
                if packet.size:  # failing to flush loses nothing
                    self.damaged += 1
                continue
            failures = 0
            for decoded in frames:
                if clockless:
                    decoded.pts, decoded.time_base = round(self.heard * 1_000_000), _MICROSECOND
                yield decoded

    def _flush(self) -> list[Any]:
        try:
            return self._stream.decode(None)
        except FFmpegError:
            return []

    def _nothing_decoded(self) -> str:
        described = self._opened.described
        if self._truncation is not None:
            return (
                f"{described} is truncated ({self._truncation}) and none of its frames can be decoded; "
                "get the complete file."
            )
        if self.end is not None:
            return f"{described} has no readable frame ({self.end}); check that it plays in a video player."
        return (
            f"{described} has no frame that can be decoded as {self._stream.codec_context.name}; "
            "check that it plays in a video player."
        )

    @property
    def notes(self) -> list[str]:
        """Sentences about unusual properties of the source and how they are handled; not errors."""
        found = self._converter.notes
        if self._deinterlacer.active:
            found.append(f"{self.described} is interlaced; its frames were deinterlaced.")
        return found

    @property
    def warnings(self) -> list[str]:
        """Sentences about problems so far that did not stop the reading."""
        described = self._opened.described
        found = damage(described, self.damaged)
        if self._count is not None and self._truncation is not None:
            found.append(
                f"{described} is truncated: {self._truncation}; "
                f"only its first {frames_text(self._count)} could be read."
            )
        elif self._count is not None and self.end is not None:
            found.append(f"{described} broke off after {frames_text(self._count)}: {self.end}.")
        return found

    def _release(self) -> None:
        self._opened.container.close()


def damage(described: str, packets: int) -> list[str]:
    """Return the warning about packets that could not be decoded, as a list of at most one sentence."""
    if not packets:
        return []
    skipped = "1 damaged packet was" if packets == 1 else f"{packets} damaged packets were"
    return [f"{described}: {skipped} skipped; their frames are missing."]


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _video_stream(opened: _Opened) -> Any:
    container = opened.container
    # FFmpeg would render any text file as a video of scrolling text.
    streams = [] if container.format.name == "tty" else list(container.streams.video)
    moving = [stream for stream in streams if not stream.disposition & stream.disposition.__class__.attached_pic]
    if not moving:
        if container.streams.audio:
            cover = " and a cover image" if streams else ""
            raise VideoError(f"{opened.described} has only audio{cover}; give a file with a video stream.")
        raise VideoError(f"{opened.described} has no video; give an {_VIDEO_KINDS} file.")
    best = container.streams.best("video")
    chosen = best if best in moving else moving[0]
    if chosen.codec_context is None:
        raise VideoError(f"{opened.described} has a codec that is not supported; re-encode it as H.264.")
    return chosen


def open_file(
    path: Path, *, fps: Fraction | None, start: int, stop: int | None, decoding: DecodingOptions | None = None
) -> MediaReader:
    """Open a video file.

    Args:
        path: An existing file.
        fps: Frame rate to assume if the stream has none.
        start: First frame to yield.
        stop: Frame before which to end; None for all.
        decoding: Options for decoded frames.

    Returns:
        The source.

    Raises:
        VideoError: The file is empty or unreadable, has no video, or no frame can be decoded.
    """
    described = f"'{path}'"
    if path.stat().st_size == 0:
        raise VideoError(f"{described} is empty (0 bytes); give an {_VIDEO_KINDS} file.")
    try:
        # With the scheme, a name with a colon is not mistaken for another protocol.
        container = open_input(f"file:{path}")
    except FFmpegError as error:
        truncation = truncation_of(path)
        if truncation is not None:
            raise _truncated(described, truncation) from error
        if isinstance(error, PermissionError):
            raise VideoError(f"{described} is not readable by this user; change its permissions.") from error
        if error.errno == errno.EINVAL:  # the detected format is not allowed
            problem = "is a playlist, and playlists in files are not read" if _is_list(path) else "has no video"
            raise VideoError(f"{described} {problem}; give an {_VIDEO_KINDS} file.") from error
        raise _unreadable(described, error.strerror) from error
    if is_heif_image(path):
        container.close()
        raise VideoError(f"{described} is a HEIF image; save it as JPEG, PNG, WebP or AVIF.")
    opened = _Opened(container, described, path.stem, path, live=False)
    return MediaReader(opened, fps=fps, start=start, stop=stop, decoding=decoding)


def _truncated(described: str, truncation: str) -> VideoError:
    return VideoError(f"{described} is truncated ({truncation}) and cannot be opened; get the complete file.")


def _unreadable(described: str, reason: str | None) -> VideoError:
    return VideoError(f"{described} cannot be read as a video ({reason}); give an {_VIDEO_KINDS} file.")


def open_binary(
    file: BinaryIO, *, fps: Fraction | None, start: int, stop: int | None, decoding: DecodingOptions | None = None
) -> MediaReader:
    """Open a video from an open file, such as one on an object store.

    Args:
        file: A binary file, open for reading, that can seek; it stays open.
        fps: Frame rate to assume if the stream has none.
        start: First frame to yield.
        stop: Frame before which to end; None for all.
        decoding: Options for decoded frames.

    Returns:
        The source.

    Raises:
        VideoError: The file is empty or unreadable, has no video, or no frame can be decoded.
    """
    path = str(getattr(file, "name", None) or getattr(file, "path", None) or "file")
    name = PurePosixPath(path.partition("?")[0]).name  # what follows may be a signature
    described = f"'{name}'"
    truncation = truncation_of(file)
    try:
        if not file.read(1):
            raise VideoError(f"{described} is empty (0 bytes); give an {_VIDEO_KINDS} file.")
        file.seek(0)
        container = open_input(file)
    except (OSError, ValueError) as error:  # errors of FFmpeg are also errors of the system
        if truncation is not None:
            raise _truncated(described, truncation) from error
        reason = getattr(error, "strerror", None) or "it cannot be read"
        raise _unreadable(described, reason) from error
    opened = _Opened(container, described, PurePosixPath(name).stem, None, live=False, file=file)
    return MediaReader(opened, fps=fps, start=start, stop=stop, decoding=decoding)


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith((b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"v=0", b"[playlist]", b"<asx"))


def open_url(
    url: str,
    *,
    fps: Fraction | None,
    start: int = 0,
    stop: int | None = None,
    live: bool | None = None,
    decoding: DecodingOptions | None = None,
    redirects: bool = True,
) -> MediaReader:
    """Open a network stream.

    Args:
        url: An rtsp, rtmp, udp, rtp, srt (all live), http or https address.
        fps: Frame rate to assume if the stream has none.
        start: First frame to yield of a recording; ignored for a live stream.
        stop: Frame before which to end a recording, None for all; a live stream continues until closed.
        live: Whether the stream is live; None to decide by its scheme and format.
        decoding: Options for decoded frames.
        redirects: Whether the address may lead to others.

    Returns:
        The source.

    Raises:
        VideoError: The connection fails, or the response is not a video.
    """
    shown = described(url)
    try:
        container = open_input(url, timeout=(_NETWORK_TIMEOUT, _NETWORK_TIMEOUT), redirects=redirects)
    except (FFmpegError, ValueError) as error:
        # The rest of the error may repeat the address with the password.
        reason = getattr(error, "strerror", None) or "it is malformed"
        advice = HOW_TO_WRITE if "://..." in shown else "check the address and the network"
        raise VideoError(f"{shown} cannot be opened ({reason}); {advice}.") from None
    if live is None:
        live = scheme_of(url) in LIVE_SCHEMES or _endless(container)
    opened = _Opened(container, shown, name_of(url), None, live, url=None if live else url)
    return MediaReader(opened, fps=fps, start=0 if live else start, stop=None if live else stop, decoding=decoding)


def _endless(container: Any) -> bool:
    """Return whether an HTTP stream is endless: frames pushed by a camera, or HLS without an end."""
    kinds = set(container.format.name.split(","))
    return "mpjpeg" in kinds or ("hls" in kinds and container.duration is None)


def open_camera(
    device: str,
    *,
    fps: Fraction | None,
    start: int = 0,
    stop: int | None = None,
    live: bool | None = None,
    decoding: DecodingOptions | None = None,
) -> MediaReader:
    """Open a camera of this machine.

    Args:
        device: Its number from 0, or its name on this platform (/dev/video2, "Integrated Webcam").
        fps: Frame rate to request; None for the default of the camera.
        start: First frame to yield if the camera is not treated as live.
        stop: Frame before which to end if the camera is not treated as live; None to continue until closed.
        live: False to treat it as a recording, of which no frame is dropped.
        decoding: Options for decoded frames.

    Returns:
        The source.

    Raises:
        VideoError: There is no such camera, it is in use, or this platform's cameras are not supported.
    """
    address, kind = _camera_address(device)
    options: dict[str, str] = {}
    if fps is not None or kind == "avfoundation":
        options["framerate"] = str(fps if fps is not None else 30)
    try:
        container = open_input(address, device=kind, options=options, timeout=(_NETWORK_TIMEOUT, None))
    except (FFmpegError, ValueError) as error:
        raise VideoError(_camera_fault(device, address, error)) from error
    live = live is not False
    opened = _Opened(container, f"camera:{device}", f"camera-{PurePosixPath(device).name}", None, live)
    return MediaReader(opened, fps=fps, start=0 if live else start, stop=None if live else stop, decoding=decoding)


def _camera_address(device: str) -> tuple[str, str]:
    number = int(device) if device.isascii() and device.isdigit() else None
    if sys.platform == "darwin":
        return device, "avfoundation"
    if sys.platform == "win32":
        return f"video={device if number is None else _windows_camera(number)}", "dshow"
    return (device if number is None else f"/dev/video{number}"), "v4l2"


def _windows_camera(number: int) -> str:
    # DirectShow identifies cameras by name only.
    found: list[str] = []
    with contextlib.suppress(ImportError, FFmpegError, ValueError, OSError):
        from av.device import enumerate_input_devices

        found = [each.description for each in enumerate_input_devices("dshow") if "video" in each.media_types]
    if number < len(found):
        return found[number]
    raise VideoError(
        f"camera:{number} does not exist ({len(found)} cameras were found); connect one, "
        "or use its name in the system, such as 'camera:Integrated Webcam'."
    )


def _camera_fault(device: str, address: str, error: Exception) -> str:
    camera = f"camera:{device} ({address})"
    code = getattr(error, "errno", None)
    if code == errno.EBUSY:
        return f"{camera} is in use by another program; close that program first."
    if code in (errno.EACCES, errno.EPERM):
        return f"{camera} is not accessible to this user; allow access to the camera."
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EIO):
        return f"{camera} does not exist; connect a camera or give another number, such as camera:0."
    reason = getattr(error, "strerror", None) or str(error)
    return f"{camera} cannot be opened ({reason}); check that it works in another program."


def exact_fps(fps: float | Fraction | None) -> Fraction | None:
    """Check a frame rate and convert it to an exact fraction.

    Args:
        fps: Frames per second, or None.

    Returns:
        The fraction; 29.97 and similar rates become multiples of 1000/1001.

    Raises:
        VideoError: It is not a positive number up to 1000.
    """
    if fps is None:
        return None
    if (
        isinstance(fps, bool)
        or not isinstance(fps, (int, float, Fraction))
        or not math.isfinite(fps)
        or not 0 < fps <= 1000
    ):
        raise VideoError(f"fps is {fps!r}; it must be a number above 0 and at most 1000.")
    if isinstance(fps, Fraction):
        return fps
    broadcast = Fraction(round(fps * 1.001) * 1000, 1001)
    if abs(float(broadcast) - fps) < 0.005 and fps != round(fps):
        return broadcast
    return Fraction(fps).limit_denominator(1001)
