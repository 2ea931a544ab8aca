"""Colours, interlacing and pixel aspect of videos: the model sees what a player shows."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from refervos.errors import VideoError
from refervos.video import OverlaySink, open_source
from refervos.video.colours import Converter
from refervos.video.deinterlacing import Deinterlacer
from video_files import decode, number_of, numbered_frame, png, rotate, segmentation, write_video

RED, BLUE = (220, 30, 30), (30, 30, 220)
# Code points of H.273
BT709, BT601, BT2020 = 1, 6, 9
PQ, HLG, SRGB, UNKNOWN = 16, 18, 13, 2
P3 = 12


def chart() -> np.ndarray:
    """Grays and colours on a dark background, uint8 (48, 64, 3)."""
    image = np.full((48, 64, 3), 60, np.uint8)
    patches = [RED, BLUE, (30, 160, 40), (240, 215, 40), (128, 128, 128), (190, 190, 190), (20, 20, 20), (90, 60, 150)]
    for k, colour in enumerate(patches):
        image[8 + 20 * (k // 4) : 24 + 20 * (k // 4), 2 + 16 * (k % 4) : 14 + 16 * (k % 4)] = colour
    return image


def inner(image: np.ndarray) -> np.ndarray:
    """The centres of the patches, unaffected by chroma subsampling."""
    return np.array([image[16 + 20 * (k // 4), 8 + 16 * (k % 4)] for k in range(8)]).astype(int)


def light_of(image: np.ndarray) -> np.ndarray:
    share = image / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def to_bt2020(light: np.ndarray) -> np.ndarray:
    """Convert linear light from BT.709 to BT.2020 primaries (BT.2087)."""
    return light @ np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]).T


def pq(image: np.ndarray, white: float = 203) -> np.ndarray:
    """Encode as PQ, with white at the given cd/m2."""
    power = (to_bt2020(light_of(image)).clip(0) * white / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(image: np.ndarray) -> np.ndarray:
    """Encode as HLG, with white at 203 cd/m2 on a 1000 cd/m2 display."""
    display = to_bt2020(light_of(image)).clip(0) * 0.203
    brightness = (display @ np.array([0.2627, 0.6780, 0.0593]))[..., None]
    scene = display * np.where(brightness > 0, brightness, 1) ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def srgb_bt2020(image: np.ndarray) -> np.ndarray:
    light = to_bt2020(light_of(image)).clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


MATRICES = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), BT2020: (0.2627, 0.0593)}


def coded(share: np.ndarray, matrix: int, bits: int = 10) -> av.VideoFrame:
    """A limited-range 4:4:4 frame from encoded red, green and blue in 0 to 1."""
    red, green, blue = np.moveaxis(share, -1, 0)
    kr, kb = MATRICES[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    one = 2 ** (bits - 8)
    planes = [
        (16 + 219 * luma) * one,
        (128 + 224 * (blue - luma) / (2 - 2 * kb)) * one,
        (128 + 224 * (red - luma) / (2 - 2 * kr)) * one,
    ]
    height, width = luma.shape
    frame = av.VideoFrame(width, height, "yuv444p" if bits == 8 else f"yuv444p{bits}le")
    for plane, values in zip(frame.planes, planes, strict=True):
        kind = np.uint8 if bits == 8 else np.uint16
        line = np.zeros((plane.height, plane.line_size // np.dtype(kind).itemsize), kind)
        line[:, : plane.width] = values.round().astype(kind)
        plane.update(line.tobytes())
    return frame


def write_coded(path: Path, frames: Sequence[av.VideoFrame], *, rate: int = 10, **tags: Any) -> Path:
    """Write frames losslessly, with the given stream metadata."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for k, frame in enumerate(frames):
            for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
                if name in tags:
                    setattr(frame, name, tags[name])
            frame.pts, frame.time_base = k, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def first_frame(path: Path, **options: Any) -> tuple[np.ndarray, list[str]]:
    """Read the first frame and the notes of a source."""
    with open_source(path, **options) as source:
        images = [frame.image for frame in source]
    assert source.warnings == []
    assert (source.info.height, source.info.width) == images[0].shape[:2]
    return images[0], source.notes


# HDR and wide colours


@pytest.mark.parametrize(
    ("encode", "transfer", "words"),
    [(pq, PQ, "is HDR (PQ)"), (hlg, HLG, "is HDR (HLG)"), (srgb_bt2020, SRGB, "has the wide colour gamut BT.2020")],
)
@pytest.mark.parametrize("tagged", [True, False])
def test_hdr_and_wide_gamuts_are_converted_to_bt709(
    tmp_path: Path, encode: Callable[[np.ndarray], np.ndarray], transfer: int, words: str, tagged: bool
) -> None:
    rest = {"colorspace": BT2020, "color_primaries": BT2020} if tagged or transfer == SRGB else {}
    frames = [coded(encode(chart()), BT2020)] * 2
    path = write_coded(tmp_path / "v.mkv", frames, color_trc=transfer, color_range=1, **rest)
    image, notes = first_frame(path)
    # Only white and colours near it are dimmed a little, to leave range for highlights.
    assert np.abs(inner(image) - inner(chart())).max() <= 8
    assert len(notes) == 1
    assert notes[0].startswith(f"'{path}' {words}")


def test_hdr_highlights_stay_distinct_up_to_1000_cd_per_m2(tmp_path: Path) -> None:
    steps = np.zeros((48, 64, 3), np.uint8)
    for k, level in enumerate((100, 137, 170, 200, 228, 255)):
        steps[:, 10 * k : 10 * k + 10] = level
    path = write_coded(
        tmp_path / "v.mkv",
        [coded(pq(steps, white=1000), BT2020)],
        colorspace=BT2020,
        color_primaries=BT2020,
        color_trc=PQ,
        color_range=1,
    )
    row = first_frame(path)[0][24, 5:60:10].astype(int)
    assert (np.diff(row[:, 0]) >= 1).all()
    assert row[-1].min() >= 253
    assert np.ptp(row, axis=1).max() <= 1  # gray stays gray


def test_colours_of_sdr_video_are_unchanged(tmp_path: Path) -> None:
    path = write_coded(
        tmp_path / "v.mkv", [coded(chart() / 255, BT709)], colorspace=BT709, color_primaries=BT709, color_trc=1
    )
    image, notes = first_frame(path)
    assert np.abs(inner(image) - inner(chart())).max() <= 2
    assert notes == []


def test_colour_metadata_may_change_midway(tmp_path: Path) -> None:
    first = write_hevc(tmp_path / "a.hevc", chart() / 255, "bt709", "bt709", "bt709")
    second = write_hevc(tmp_path / "b.hevc", pq(chart()), "bt2020", "smpte2084", "bt2020nc")
    (tmp_path / "ab.hevc").write_bytes(first.read_bytes() + second.read_bytes())
    with open_source(tmp_path / "ab.hevc") as source:
        images = [frame.image for frame in source]
    assert len(images) == 4
    assert all(np.abs(inner(image) - inner(chart())).max() <= 14 for image in images)


def write_hevc(path: Path, share: np.ndarray, primaries: str, transfer: str, matrix: str) -> Path:
    """Write a bare stream of two frames, tagged by the encoder."""
    params = f"log-level=none:crf=1:colorprim={primaries}:transfer={transfer}:colormatrix={matrix}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx265", rate=10, options={"x265-params": params, "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p10le"
        for k in range(2):
            frame = coded(share, BT2020 if matrix == "bt2020nc" else BT709)
            frame.pts, frame.time_base = k, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def hdr_png(path: Path) -> Path:
    """Write a 16-bit PNG that is marked as PQ."""
    data = png(path, (pq(chart()) * 65535).round().astype(np.uint16)).read_bytes()
    chunk = b"cICP" + bytes([BT2020, PQ, 0, 1])
    at = data.index(b"IDAT") - 4
    path.write_bytes(data[:at] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:])
    return path


def hdr_avif(path: Path) -> Path:
    """Write a 10-bit AVIF image that is marked as PQ."""
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("no AV1 encoder")
    tags = {"colorspace": BT2020, "color_primaries": BT2020, "color_trc": PQ, "color_range": 1}
    frame = coded(pq(chart()), BT2020).reformat(format="yuv420p10le")
    with av.open(str(path), "w", format="avif") as container:
        stream: Any = container.add_stream("libsvtav1", rate=1, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
            setattr(frame, name, value)
        frame.pts, frame.time_base = 0, Fraction(1)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("write", [hdr_png, hdr_avif])
def test_hdr_images_are_tone_mapped(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    suffix = write.__name__[4:]
    for k in range(2):
        write(tmp_path / f"{k}.{suffix}")
    Image.fromarray(chart()).save(tmp_path / f"2.{suffix}", quality=100)
    for spec in (tmp_path, tmp_path / f"0.{suffix}"):
        with open_source(spec) as source:
            frames = list(source)
        assert [frame.name for frame in frames] == (["0", "1", "2"] if spec == tmp_path else ["0"])
        assert all(np.abs(inner(frame.image) - inner(chart())).max() <= 14 for frame in frames)
        assert source.notes == [f"'{spec}' is HDR; it was tone-mapped to BT.709."]


# Videos without a colour matrix


@pytest.mark.parametrize(
    ("width", "height", "matrix"),
    [
        (640, 360, BT601),
        (720, 576, BT601),
        (720, 480, BT601),
        (1280, 720, BT709),
        (1920, 1080, BT709),
        (608, 1080, BT709),
    ],
)
def test_colour_matrix_of_an_untagged_video_depends_on_its_size(
    tmp_path: Path, width: int, height: int, matrix: int
) -> None:
    image = np.tile(np.array([RED, BLUE], np.uint8)[:, None].repeat(width // 2, 1).reshape(1, -1, 3), (height, 1, 1))
    path = write_coded(tmp_path / "v.mkv", [coded(image / 255, matrix, bits=8)])
    found, notes = first_frame(path)
    assert np.abs(found[5, 5].astype(int) - RED).max() <= 3
    assert np.abs(found[5, -5].astype(int) - BLUE).max() <= 3
    assert notes == []
    # The overlay is tagged as BT.709.
    with open_source(path) as source, OverlaySink(tmp_path / "o.mp4", source.info, crf=1) as sink:
        for frame in source:
            sink.write(frame, segmentation(0, np.zeros((0, height, width), bool)))
    with av.open(str(tmp_path / "o.mp4")) as container:
        written = next(container.decode(video=0))
        assert written.colorspace == BT709
        assert np.abs(written.to_ndarray(format="rgb24")[5, 5].astype(int) - RED).max() <= 6


def test_a_tagged_colour_matrix_overrides_the_size(tmp_path: Path) -> None:
    image = np.full((720, 1280, 3), RED, np.uint8)
    path = write_coded(tmp_path / "v.mkv", [coded(image / 255, BT601, bits=8)], colorspace=BT601)
    assert np.abs(first_frame(path)[0][5, 5].astype(int) - RED).max() <= 3


@pytest.mark.parametrize("name", ["colorspace", "color_trc", "color_primaries", "color_range"])
@pytest.mark.parametrize("value", range(20))
@pytest.mark.parametrize("hdr", [True, False])
def test_frames_with_any_colour_metadata_are_converted(name: str, value: int, hdr: bool) -> None:
    frame = coded(chart() / 255, BT709)
    frame.color_trc, frame.color_primaries = (PQ, BT2020) if hdr else (1, 1)
    setattr(frame, name, value)
    converter = Converter("'v.mkv'")
    assert converter.rgb(frame, None).shape == (48, 64, 3)
    unknown = name == "colorspace" and value in (8, *range(11, 20))
    assert any("has an unknown colour matrix" in note for note in converter.notes) == unknown


# Non-square pixels


@pytest.mark.parametrize(
    ("aspect", "width", "height"),
    [(Fraction(2), 128, 48), (Fraction(1, 2), 64, 96), (Fraction(64, 45), 91, 48), (Fraction(1001, 1000), 64, 48)],
)
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts"])
def test_frames_have_square_pixels(tmp_path: Path, name: str, aspect: Fraction, width: int, height: int) -> None:
    path = write_anamorphic(tmp_path / name, aspect)
    image, notes = first_frame(path)
    assert image.shape == (height, width, 3)
    third = np.abs(image[3, : width // 5].astype(int) - RED).max()
    assert third < 60
    if (width, height) == (64, 48):
        assert notes == []
    else:
        assert notes == [
            f"'{path}' has non-square pixels; its frames and masks are {width}x{height}, "
            "as displayed, not 64x48, as stored."
        ]
    stored, notes = first_frame(path, square_pixels=False)
    assert stored.shape == (48, 64, 3)
    assert notes == []


def write_anamorphic(path: Path, aspect: Fraction, count: int = 3) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_frame(k), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_overlay_of_an_anamorphic_video_has_square_pixels(tmp_path: Path) -> None:
    path = write_anamorphic(tmp_path / "v.mp4", Fraction(2))
    with open_source(path) as source, OverlaySink(tmp_path / "o.mp4", source.info) as sink:
        for frame in source:
            sink.write(frame, segmentation(frame.index, np.zeros((0, 48, 128), bool)))
    images, _ = decode(tmp_path / "o.mp4")
    assert images[0].shape == (48, 128, 3)
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio in (None, 1)


def test_an_anamorphic_video_can_be_rotated(tmp_path: Path) -> None:
    path = rotate(write_anamorphic(tmp_path / "v.mp4", Fraction(2)), 90)
    assert first_frame(path)[0].shape == (128, 48, 3)


def test_pixel_aspect_may_change_in_a_broadcast(tmp_path: Path) -> None:
    first = write_anamorphic(tmp_path / "a.h264", Fraction(1))
    second = write_anamorphic(tmp_path / "b.h264", Fraction(2))
    (tmp_path / "ab.h264").write_bytes(first.read_bytes() + second.read_bytes())
    with open_source(tmp_path / "ab.h264") as source:
        widths = [frame.image.shape[1] for frame in source]
    # The decoder reports the change a few frames early, as it buffers some.
    assert (len(widths), widths[0], widths[3:]) == (6, 64, [128] * 3)


def test_an_implausible_pixel_aspect_is_ignored(tmp_path: Path) -> None:
    assert first_frame(write_anamorphic(tmp_path / "v.mp4", Fraction(100)))[0].shape == (48, 64, 3)


# Interlaced video


def moving(time: float, height: int = 96, width: int = 128) -> np.ndarray:
    """A bright bar that moves by 12 pixels per frame over gray."""
    image = np.full((height, width, 3), 70, np.uint8)
    left = round(10 + 12 * time)
    image[:, left : left + 24] = 210
    return image


def write_interlaced(path: Path, count: int = 8, flagged: bool = True) -> Path:
    """Write frames whose even rows were recorded half a frame later than the odd ones."""
    params = "bff=1" if flagged else ""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"crf": "4", "x264-params": params})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for k in range(count):
            woven = moving(k)
            woven[::2] = moving(k + 0.5)[::2]
            frame = av.VideoFrame.from_ndarray(woven, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def comb(image: np.ndarray) -> float:
    """Mean difference of each row from the average of its neighbours."""
    gray = image[..., 0].astype(float)
    return float(np.abs(gray[1:-1] - (gray[:-2] + gray[2:]) / 2).mean())


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts", "v.h264"])
def test_interlaced_video_is_deinterlaced(tmp_path: Path, name: str) -> None:
    path = write_interlaced(tmp_path / name)
    with open_source(path, deinterlace=False) as source:
        stored = list(source)
    assert source.notes == []
    with open_source(path) as source:
        frames = list(source)
    assert source.notes == [f"'{path}' is interlaced; its frames were deinterlaced."]
    assert source.warnings == []
    assert [frame.index for frame in frames] == list(range(8))
    assert [frame.time for frame in frames] == pytest.approx([frame.time for frame in stored], abs=1e-3)
    for k in range(1, 7):
        assert comb(stored[k].image) > 8
        assert comb(frames[k].image) < 2
        # The result is the first field, not a mixture of both.
        assert np.abs(frames[k].image[10:-10].astype(float) - moving(k)[10:-10]).mean() < 6


def test_unmarked_interlaced_video_is_deinterlaced_on_request(tmp_path: Path) -> None:
    path = write_interlaced(tmp_path / "v.mp4", flagged=False)
    assert comb(first_frame(path)[0]) > 8
    with open_source(path, deinterlace=True) as source:
        frames = list(source)
    assert max(comb(frame.image) for frame in frames[1:]) < 2
    assert len(frames) == 8


def test_range_of_an_interlaced_video_keeps_index_and_time(tmp_path: Path) -> None:
    with open_source(write_interlaced(tmp_path / "v.mp4"), start=3, stop=6) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == [3, 4, 5]
    assert [frame.time for frame in frames] == pytest.approx([0.3, 0.4, 0.5], abs=1e-3)
    assert np.abs(frames[0].image[10:-10].astype(float) - moving(3)[10:-10]).mean() < 6


def test_only_interlaced_parts_of_a_video_are_deinterlaced(tmp_path: Path) -> None:
    whole = write_interlaced(tmp_path / "a.h264", 4, flagged=False)
    combed = write_interlaced(tmp_path / "b.h264", 4)
    (tmp_path / "ab.h264").write_bytes(whole.read_bytes() + combed.read_bytes() + whole.read_bytes())
    with open_source(tmp_path / "ab.h264") as source:
        values = [comb(frame.image) for frame in source]
    assert len(values) == 12
    assert min(values[:4]) > 8
    assert max(values[5:7]) < 2
    assert min(values[9:]) > 8


@pytest.mark.parametrize("matrix", [BT709, BT601, BT2020, 8, 17])
def test_deinterlacing_keeps_colour_metadata(matrix: int) -> None:
    frames = []
    for k in range(4):
        frame = coded(chart() / 255, BT709)
        frame.colorspace, frame.color_range, frame.color_trc, frame.pts = matrix, 1, PQ, k
        frames.append(frame)
    deinterlacer = Deinterlacer(always=True)
    processed = list(deinterlacer.process(iter(frames)))
    assert deinterlacer.active
    assert [(frame.colorspace, frame.color_range, frame.color_trc) for frame in processed] == [(matrix, 1, PQ)] * 4


def test_a_video_too_small_to_deinterlace_is_unchanged(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "v.mkv",
        3,
        width=2,
        height=2,
        codec="ffv1",
        options={},
        images=[np.full((2, 2, 3), 90, np.uint8)] * 3,
    )
    with open_source(path, deinterlace=True) as source:
        images = [frame.image for frame in source]
    assert [image.shape for image in images] == [(2, 2, 3)] * 3
    assert np.abs(np.stack(images).astype(int) - 90).max() <= 3


# Side data that FFmpeg knows and PyAV does not


def with_exif(image: np.ndarray, orientation: int) -> bytes:
    """A JPEG with the EXIF data of a camera."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "camera", orientation
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=95, exif=exif)
    return data.getvalue()


@pytest.mark.parametrize(
    ("orientation", "red", "shape"), [(1, (3, 3), (48, 64, 3)), (6, (3, -4), (64, 48, 3)), (2, (3, -4), (48, 64, 3))]
)
def test_motion_jpeg_with_exif_is_read_upright(
    tmp_path: Path, orientation: int, red: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    path = tmp_path / "v.mjpeg"
    path.write_bytes(b"".join(with_exif(numbered_frame(k), orientation) for k in range(4)))
    with open_source(path) as source:
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 3]
    assert frames[0].image.shape == shape
    assert np.abs(frames[0].image[red].astype(int) - RED).max() < 40
    assert (source.info.height, source.info.width) == shape[:2]


@pytest.mark.parametrize("name", ["v.avi", "v.mov", "v.mkv"])
def test_motion_jpeg_with_exif_is_read_from_containers(tmp_path: Path, name: str) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for k in range(4):
            packet = av.Packet(with_exif(numbered_frame(k), 1))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, k, k, Fraction(1, 10)
            packet.is_keyframe = True
            container.mux(packet)
    with open_source(tmp_path / name) as source:
        assert [number_of(frame.image) for frame in source] == [0, 1, 2, 3]


def test_motion_jpeg_with_broken_exif_is_read(tmp_path: Path) -> None:
    entries = struct.pack("<HHI4s", 0x0103, 2, 4, b"abc\0") + struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2) + entries + struct.pack("<I", 0)
    plain = [with_exif(numbered_frame(k), 1) for k in range(3)]
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "v.mjpeg").write_bytes(b"".join(data[:2] + segment + data[2:] for data in plain))
    with open_source(tmp_path / "v.mjpeg") as source:
        assert [number_of(frame.image) for frame in source] == [0, 1, 2]


def test_a_pixel_format_that_cannot_be_converted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise av.error.ArgumentError(22, "Invalid argument")

    path = write_video(tmp_path / "v.mp4", 2)
    monkeypatch.setattr("refervos.video.colours._array", refuse)
    with pytest.raises(VideoError, match="has frames in the pixel format yuv420p, not convertible to RGB"):
        list(open_source(path))
