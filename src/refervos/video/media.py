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
from typing import Any

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
from refervos.video.truncation import cut_short, is_heif_image

# A damaged file may fail at several packets in a row before the demuxer finds its feet again; a broken one
# never does.
_DEMUX_ATTEMPTS = 32
_NETWORK_TIMEOUT = 15.0
# Pictures over HTTP one after the other carry no times, and FFmpeg makes some up; when they arrive is nearer the truth.
_CLOCKLESS = {"mpjpeg"}
_MICROSECOND = Fraction(1, 1_000_000)
_DEVICES = {"v4l2", "dshow", "avfoundation"}
_VIDEO_KINDS = "mp4, mov, mkv, webm, avi or gif"


@dataclass(frozen=True)
class Treatment:
    """What is done to decoded pictures.

    Attributes:
        deinterlace: Whether the half pictures of interlaced ones are joined; None where pictures say that they are.
        square_pixels: Whether pixels that are not square are stretched.
    """

    deinterlace: bool | None = None
    square_pixels: bool = True


@dataclass(frozen=True)
class _Opened:
    """A container that has been opened, and how to speak of it."""

    container: Any
    described: str
    name: str
    path: Path | None
    live: bool
    url: str | None = None


class MediaReader(Reader):
    """Frames of a video file, camera or network stream.

    The first frame is decoded on opening, so that what cannot be read fails there and the size is known.
    Packets that cannot be decoded are skipped and counted in a warning; a stream that breaks off ends with a
    warning.

    Attributes:
        described: How messages name the source.
        damaged: Packets skipped so far.
        heard: When the last packet came, in seconds of `time.monotonic`.
        end: Why the stream broke off; None while it has not, or where it ended as it should.
    """

    def __init__(
        self,
        opened: _Opened,
        *,
        fps: Fraction | None,
        start: int = 0,
        stop: int | None = None,
        treatment: Treatment | None = None,
    ) -> None:
        treatment = treatment or Treatment()
        self._opened = opened
        self.described = opened.described
        self._start, self._stop = start, stop
        self.damaged = 0
        self.heard = time.monotonic()
        self.end: str | None = None
        self._count: int | None = None  # of frames, once the end has been met
        try:
            self._stream = _video_stream(opened)
            self._cut = cut_short(opened.path) if opened.path is not None else None
            codec = self._stream.codec_context
            refuse_large(self.described, codec.width, codec.height)
            # Those that grow on the way are refused by the decoder, before it makes room for them.
            codec.options = {"max_pixels": str(MAX_PIXELS)}
            self._converter = Converter(
                self.described,
                square_pixels=treatment.square_pixels,
                camera=bool(_DEVICES & set(opened.container.format.name.split(","))),
            )
            self._fields = Deinterlacer(always=treatment.deinterlace is True)
            self._decoded = self._decode()
            if treatment.deinterlace is not False:
                self._decoded = self._fields.pictures(self._decoded)
            self._aspects = self._told_aspects()
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
            has_sound=bool(container.streams.audio),
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
        for picture in _chain(first, self._decoded):
            index += 1
            shown = timeline.at(self._clock(picture))
            if index >= self._start:
                yield Frame(index, self._converter.rgb(picture, self._aspect()), shown)
            # Stopping here rather than at the next picture keeps a camera from being waited for in vain.
            if self._stop is not None and index + 1 >= self._stop:
                return
        self._count = index + 1
        if self._count <= self._start:
            raise EndOfVideoError(
                f"{self._opened.described} has only {frames_text(self._count)}, so none is left from frame "
                f"{self._start} on."
            )

    def _told_aspects(self) -> tuple[Fraction | None, Fraction | None]:
        """Width by height of pixels as the container or else the stream told at the start, and as the stream does now.

        The first wins, as in players, unless a broadcast changes the second on the way.
        """
        stream = self._stream
        return stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio

    def _aspect(self) -> Fraction | None:
        first, coded = self._aspects
        now = self._stream.codec_context.sample_aspect_ratio
        return first if now == coded else now

    def _clock(self, picture: Any) -> float | None:
        """What the stream's clock says at a picture, in seconds; None where it says nothing."""
        return None if picture.pts is None else float(picture.pts * (picture.time_base or self._stream.time_base))

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
                    # Some cameras answer "not yet" instead of waiting.
                    waiting_since = waiting_since or time.monotonic()
                    if time.monotonic() - waiting_since < _NETWORK_TIMEOUT:
                        time.sleep(0.005)
                        continue
                failures += 1
                if self._opened.path is None or failures >= _DEMUX_ATTEMPTS:
                    self.end = error.strerror or "it broke off"
                    yield from self._flush()
                    return
                continue
            waiting_since = None
            if packet.size:  # at the end an empty one asks the decoder for what it holds back
                self.heard = time.monotonic()
            if self._cut is not None and packet.is_corrupt:
                continue  # the packet through which the cut goes: its picture would be half gray
            try:
                pictures = stream.decode(packet)
            except FFmpegError:
                if packet.size:  # the empty one that fails has nothing more to give and lost nothing
                    self.damaged += 1
                continue
            failures = 0
            for picture in pictures:
                if clockless:
                    picture.pts, picture.time_base = round(self.heard * 1_000_000), _MICROSECOND
                yield picture

    def _flush(self) -> list[Any]:
        try:
            return self._stream.decode(None)
        except FFmpegError:
            return []

    def _nothing_decoded(self) -> str:
        described = self._opened.described
        if self._cut is not None:
            return (
                f"{described} is cut short ({self._cut}) and no frame of it can be decoded; get the whole file again."
            )
        if self.end is not None:
            return f"{described} gives no frame ({self.end}); check that it plays in a video player."
        return (
            f"{described} holds no frame that can be decoded as {self._stream.codec_context.name}; "
            "check that it plays in a video player."
        )

    @property
    def notes(self) -> list[str]:
        """Sentences on how it is read, where one may not expect that; nothing has gone wrong."""
        found = self._converter.notes
        if self._fields.joined:
            found.append(f"{self.described} is interlaced; the half pictures of each frame were joined.")
        return found

    @property
    def warnings(self) -> list[str]:
        """Sentences on what has gone wrong so far without stopping the reading."""
        described = self._opened.described
        found = damage(described, self.damaged)
        if self._count is not None and self._cut is not None:
            found.append(
                f"{described} is cut short: {self._cut}; only its first {frames_text(self._count)} could be read."
            )
        elif self._count is not None and self.end is not None:
            found.append(f"{described} broke off after {frames_text(self._count)}: {self.end}.")
        return found

    def _release(self) -> None:
        self._opened.container.close()


def damage(described: str, packets: int) -> list[str]:
    """The warning about packets that could not be decoded; none where there were none."""
    if not packets:
        return []
    skipped = "1 damaged packet was" if packets == 1 else f"{packets} damaged packets were"
    return [f"{described}: {skipped} skipped, whose frames are missing."]


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _video_stream(opened: _Opened) -> Any:
    container = opened.container
    # FFmpeg would render any text file as a film of scrolling letters.
    streams = [] if container.format.name == "tty" else list(container.streams.video)
    moving = [stream for stream in streams if not stream.disposition & stream.disposition.__class__.attached_pic]
    if not moving:
        if container.streams.audio:
            cover = ", its cover picture aside" if streams else ""
            raise VideoError(f"{opened.described} holds only sound{cover}; give a file with a video stream.")
        raise VideoError(f"{opened.described} holds no video; give an {_VIDEO_KINDS} file.")
    best = container.streams.best("video")
    chosen = best if best in moving else moving[0]
    if chosen.codec_context is None:
        raise VideoError(f"{opened.described} is coded in a way that cannot be decoded here; re-encode it as H.264.")
    return chosen


def open_file(
    path: Path, *, fps: Fraction | None, start: int, stop: int | None, treatment: Treatment | None = None
) -> MediaReader:
    """Opens a video file.

    Args:
        path: An existing file.
        fps: Frame rate to assume for a stream that tells none.
        start: First frame to yield.
        stop: Frame before which to end, or None for all.
        treatment: What is done to its pictures.

    Returns:
        The source.

    Raises:
        VideoError: The file is empty, unreadable, holds no video, or none of it can be decoded.
    """
    described = f"'{path}'"
    if path.stat().st_size == 0:
        raise VideoError(f"{described} is empty (0 bytes); give an {_VIDEO_KINDS} file.")
    try:
        # The scheme keeps a name with a colon in it from being taken for another protocol.
        container = open_input(f"file:{path}")
    except FFmpegError as error:
        cut = cut_short(path)
        if cut is not None:
            raise VideoError(
                f"{described} is cut short ({cut}) and cannot be opened; get the whole file again."
            ) from error
        if isinstance(error, PermissionError):
            raise VideoError(f"{described} may not be read by this user; change its permissions.") from error
        if error.errno == errno.EINVAL:  # what it is taken for is not among the kinds that are read
            what = (
                "is a list of other media, which are not followed from a file" if _is_list(path) else "holds no video"
            )
            raise VideoError(f"{described} {what}; give an {_VIDEO_KINDS} file.") from error
        raise VideoError(
            f"{described} is not a video that can be read ({error.strerror}); give an {_VIDEO_KINDS} file."
        ) from error
    if is_heif_image(path):
        container.close()
        raise VideoError(f"{described} is a picture in the HEIF format; save it as JPEG, PNG, WebP or AVIF.")
    opened = _Opened(container, described, path.stem, path, live=False)
    return MediaReader(opened, fps=fps, start=start, stop=stop, treatment=treatment)


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
    treatment: Treatment | None = None,
) -> MediaReader:
    """Opens a network stream.

    Args:
        url: rtsp, rtmp, udp, rtp, srt (all live), http or https address.
        fps: Frame rate to assume for a stream that tells none.
        start: First frame to yield of a recording; a live stream is yielded from its first.
        stop: Frame before which to end a recording, or None for all; a live stream goes on until closed.
        live: Whether what answers is live; None to tell by its scheme and format.
        treatment: What is done to its pictures.

    Returns:
        The source.

    Raises:
        VideoError: Nobody answers, or what answers is no video.
    """
    shown = described(url)
    try:
        container = open_input(url, timeout=(_NETWORK_TIMEOUT, _NETWORK_TIMEOUT))
    except (FFmpegError, ValueError) as error:
        # What the error says besides may repeat the address, and with it the password.
        reason = getattr(error, "strerror", None) or "it is not understood"
        advice = HOW_TO_WRITE if "://..." in shown else "check the address and the network"
        raise VideoError(f"{shown} cannot be opened ({reason}); {advice}.") from None
    if live is None:
        live = scheme_of(url) in LIVE_SCHEMES or _endless(container)
    opened = _Opened(container, shown, name_of(url), None, live, url=None if live else url)
    return MediaReader(opened, fps=fps, start=0 if live else start, stop=None if live else stop, treatment=treatment)


def _endless(container: Any) -> bool:
    """Whether what came over HTTP is of a kind that goes on for ever: pictures pushed by a camera, HLS without end."""
    kinds = set(container.format.name.split(","))
    return "mpjpeg" in kinds or ("hls" in kinds and container.duration is None)


def open_camera(
    device: str,
    *,
    fps: Fraction | None,
    start: int = 0,
    stop: int | None = None,
    live: bool | None = None,
    treatment: Treatment | None = None,
) -> MediaReader:
    """Opens a camera of this machine.

    Args:
        device: Its number from 0, or its name as the platform knows it (/dev/video2, "Integrated Webcam").
        fps: Frame rate to ask of the camera; None for its own choice.
        start: First frame to yield where the camera is not taken as live.
        stop: Frame before which to end, or None to go on until closed, where the camera is not taken as live.
        live: False to take it as a recording, of which every frame counts.
        treatment: What is done to its pictures.

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
    return MediaReader(opened, fps=fps, start=0 if live else start, stop=None if live else stop, treatment=treatment)


def _camera_address(device: str) -> tuple[str, str]:
    number = int(device) if device.isascii() and device.isdigit() else None
    if sys.platform == "darwin":
        return device, "avfoundation"
    if sys.platform == "win32":
        return f"video={device if number is None else _windows_camera(number)}", "dshow"
    return (device if number is None else f"/dev/video{number}"), "v4l2"


def _windows_camera(number: int) -> str:
    # DirectShow knows cameras by name only.
    found: list[str] = []
    with contextlib.suppress(ImportError, FFmpegError, ValueError, OSError):
        from av.device import enumerate_input_devices

        found = [each.description for each in enumerate_input_devices("dshow") if "video" in each.media_types]
    if number < len(found):
        return found[number]
    raise VideoError(
        f"camera:{number} is absent ({len(found)} cameras are found here); connect one, "
        "or name it as the system does, such as 'camera:Integrated Webcam'."
    )


def _camera_fault(device: str, address: str, error: Exception) -> str:
    where = f"camera:{device} ({address})"
    code = getattr(error, "errno", None)
    if code == errno.EBUSY:
        return f"{where} is in use by another program; close that program first."
    if code in (errno.EACCES, errno.EPERM):
        return f"{where} may not be used by this user; allow access to the camera."
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EIO):
        return f"{where} is absent; connect a camera or give the number of another, such as camera:0."
    reason = getattr(error, "strerror", None) or str(error)
    return f"{where} cannot be opened ({reason}); check that it works in another program."


def exact_fps(fps: float | Fraction | None) -> Fraction | None:
    """Checks a frame rate and makes it exact.

    Args:
        fps: Frames per second, or None.

    Returns:
        The same as a fraction; 29.97 and its like become multiples of 1000/1001.

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
