"""Makes small real media files and segmentations for the tests of the video room."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from refervos.segmentation import Segmentation

Corner = tuple[int, int, int]


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A gray frame that tells its number by its brightness, with a red upper left and a blue lower right corner."""
    image = np.full((height, width, 3), 60 + 12 * (index % 12), np.uint8)
    third = max(1, min(width, height) // 3)
    image[:third, :third] = (220, 30, 30)
    image[-third:, -third:] = (30, 30, 220)
    return image


def number_of(image: np.ndarray) -> int:
    """Reads back which frame `picture` made this one, from its middle."""
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
    """Writes a video of `picture` frames, with a sine tone where an audio codec is named."""
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
            image = images[k] if images is not None else picture(k, width, height)
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
    """Writes a file with a sine tone and nothing else."""
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
    """Puts an ID3 tag with a cover picture in front of an mp3 file."""
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
    """Writes a display matrix into the first track header of an mp4: turned by quarters, mirrored before."""
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


def forget_coding_of_sound(mp4: Path) -> Path:
    """Renames the coding of the first sound track to one that no decoder is known for, as of phones' spatial sound."""
    data = mp4.read_bytes()
    at = data.find(b"mp4a", data.find(b"moov"))
    end = data.find(b"esds", at)
    assert 0 < at < end
    mp4.write_bytes(data[:at] + b"apac" + data[at + 4 : end] + b"dapa" + data[end + 4 :])
    return mp4


def packets_of(path: Path) -> list[tuple[int, int]]:
    """Where each video packet lies in the file: position and size."""
    with av.open(str(path)) as container:
        return [(p.pos or 0, p.size) for p in container.demux(container.streams.video[0]) if p.size]


def decode(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """All frames of a file and their times in seconds, read without the code under test."""
    images, times = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            images.append(np.asarray(frame.to_ndarray(format="rgb24")))
            times.append(float(frame.time))
    return images, times


def segmentation(
    index: int, masks: np.ndarray, ids: Sequence[int] | None = None, presence: Sequence[float] | None = None
) -> Segmentation:
    """An answer with the given masks."""
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
    """Masks of boxes of a third of the picture, each a little further right."""
    masks = np.zeros((count, height, width), bool)
    for k in range(count):
        left = width // 4 + k * 4
        masks[k, height // 3 : 2 * height // 3, left : left + width // 3] = True
    return masks
