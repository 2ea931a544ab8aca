"""Small real media files, servers and segmentations for the tests of refervos.video."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from refervos.errors import VideoError
from refervos.segmentation import Segmentation
from refervos.video import open_source


def numbered_frame(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A gray frame whose brightness encodes its number, with a red upper left and a blue lower right corner."""
    image = np.full((height, width, 3), 60 + 12 * (index % 12), np.uint8)
    third = max(1, min(width, height) // 3)
    image[:third, :third] = (220, 30, 30)
    image[-third:, -third:] = (30, 30, 220)
    return image


def number_of(image: np.ndarray) -> int:
    """Read the number of a frame of `numbered_frame` from its middle."""
    height, width = image.shape[:2]
    middle = image[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2]
    return round((float(middle.mean()) - 60) / 12)


def write_video(
    path: Path,
    count: int = 6,
    *,
    width: int = 64,
    height: int = 48,
    fps: int = 10,
    times: Sequence[float] | None = None,
    codec: str | None = None,
    pix_fmt: str | None = None,
    images: Sequence[np.ndarray] | None = None,
    audio: str | None = None,
    audio_seconds: float | None = None,
    audio_first: float = 0.0,
    video_first: float = 0.0,
    options: dict[str, str] | None = None,
    movflags: str | None = None,
    gop: int | None = None,
    title: str | None = None,
    tracks: int = 1,
) -> Path:
    """Write a video of frames of `numbered_frame`, with a sine tone if an audio codec is given."""
    codec = codec or {".gif": "gif", ".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    pix_fmt = pix_fmt or {"gif": "rgb8"}.get(codec, "yuv420p")
    if options is None:
        options = {"libx264": {"crf": "5", "preset": "ultrafast"}, "libvpx-vp9": {"crf": "10", "b": "0"}}.get(codec, {})
        if codec == "libvpx-vp9":
            options = {**options, "deadline": "realtime", "cpu-used": "8"}
        if codec == "mpeg4":
            options = {"qscale": "2", "b": "4000000"}
    clock = Fraction(1, fps) if codec in ("mpeg4", "gif") and times is None else Fraction(1, 1000)
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        if title is not None:
            container.metadata["title"] = title
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = clock
        if gop is not None:
            stream.codec_context.gop_size = gop
        sounds: list[Any] = []
        for _ in range(tracks if audio is not None else 0):
            sounds.append(container.add_stream(str(audio), rate=48000 if "opus" in str(audio) else 44100))
            sounds[-1].codec_context.layout = "mono"
        for k in range(count):
            image = images[k] if images is not None else numbered_frame(k, width, height)
            layout = "rgba" if image.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=layout)
            seconds = video_first + (times[k] if times is not None else k / fps)
            frame.pts, frame.time_base = round(seconds / clock), clock
            container.mux(stream.encode(frame))
        for sound in sounds:
            _write_tone(container, sound, count / fps if audio_seconds is None else audio_seconds, audio_first)
        container.mux(stream.encode(None))
    return path


def write_tone(path: Path, codec: str, seconds: float = 0.5) -> Path:
    """Write an audio file with a sine tone."""
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream(codec, rate=44100)
        sound.codec_context.layout = "mono"
        _write_tone(container, sound, seconds, 0.0)
    return path


def _write_tone(container: Any, sound: Any, seconds: float, first: float) -> None:
    rate = sound.codec_context.sample_rate
    tone = np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)
    samples = (tone * 12000).astype(np.int16)[None]
    for begin in range(0, samples.shape[1], 1024):
        block = av.AudioFrame.from_ndarray(samples[:, begin : begin + 1024], format="s16", layout="mono")
        block.sample_rate = rate
        block.pts, block.time_base = round(first * rate) + begin, Fraction(1, rate)
        container.mux(sound.encode(block))
    container.mux(sound.encode(None))


def add_cover(mp3: Path) -> Path:
    """Prepend an ID3 tag with a cover image to an mp3 file."""
    cover = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 100, 0)).save(cover, "PNG")
    body = b"\0image/png\0\x03\0" + cover.getvalue()
    block = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = len(block)
    synchsafe = bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
    sound = mp3.read_bytes()
    if sound[:3] == b"ID3":
        old = sum(byte << shift for byte, shift in zip(sound[6:10], (21, 14, 7, 0), strict=True))
        sound = sound[10 + old :]
    mp3.write_bytes(b"ID3\x03\0\0" + synchsafe + block + sound)
    return mp3


def rotate(mp4: Path, clockwise: int, mirrored: bool = False) -> Path:
    """Write a display matrix into the first track header of an mp4: mirrored, then rotated by quarter turns."""
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise]
    if mirrored:
        a, b = -a, -b
    data = bytearray(mp4.read_bytes())
    start = data.index(b"tkhd") + 4
    matrix = start + (40 if data[start] == 0 else 52)
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    mp4.write_bytes(data)
    return mp4


def make_audio_codec_unknown(mp4: Path) -> Path:
    """Rename the codec of the first audio track to one without a decoder, like the spatial audio of phones."""
    data = mp4.read_bytes()
    at = data.find(b"mp4a", data.find(b"moov"))
    end = data.find(b"esds", at)
    assert 0 < at < end
    mp4.write_bytes(data[:at] + b"apac" + data[at + 4 : end] + b"dapa" + data[end + 4 :])
    return mp4


def packets_of(path: Path) -> list[tuple[int, int]]:
    """Position and size of each video packet in the file."""
    with av.open(str(path)) as container:
        return [(p.pos or 0, p.size) for p in container.demux(container.streams.video[0]) if p.size]


def decode(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """All frames of a file and their times in seconds, decoded without the code under test."""
    images, times = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            images.append(np.asarray(frame.to_ndarray(format="rgb24")))
            times.append(float(frame.time))
    return images, times


def segmentation(
    index: int, masks: np.ndarray, ids: Sequence[int] | None = None, presence: Sequence[float] | None = None
) -> Segmentation:
    """A segmentation with the given masks."""
    count = len(masks)
    return Segmentation(
        frame_index=index,
        track_ids=tuple(ids) if ids is not None else tuple(range(count)),
        expressions=tuple(f"the thing {k}" for k in range(count)),
        masks=masks.astype(bool),
        presence=np.asarray(presence if presence is not None else np.ones(count), np.float32),
        switched=np.zeros(count, bool),
    )


def box_masks(width: int, height: int, count: int = 1) -> np.ndarray:
    """Masks of boxes of a third of the frame, each a little further right."""
    masks = np.zeros((count, height, width), bool)
    for k in range(count):
        left = width // 4 + k * 4
        masks[k, height // 3 : 2 * height // 3, left : left + width // 3] = True
    return masks


def fault(spec: Any, **options: Any) -> str:
    """The sentence with which opening or reading a source fails."""
    with pytest.raises(VideoError) as caught, open_source(spec, **options) as source:
        list(source)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def png(path: Path, values: np.ndarray, *, size: tuple[int, int] | None = None) -> Path:
    """Write a PNG of 8 or 16 bits with 1 to 4 channels; `size` is a wrong width and height for its header."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    rows = b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)
    declared = size or (width, height)
    head = struct.pack(">IIBBBBB", *declared, 8 * values.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit the size of files, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FolderServer:
    """HTTP server of the files in a folder.

    Attributes:
        url: Address of the folder.
    """

    def __init__(self, folder: Path) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def __enter__(self) -> str:
        return self.url

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
