"""Sources of frames, valid and invalid."""

from __future__ import annotations

import errno
import io
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refervos.errors import VideoError
from refervos.video import Frame, open_source, read_video
from refervos.video import addresses as addresses_module
from refervos.video import media as media_module
from video_files import (
    FolderServer,
    add_cover,
    fault,
    number_of,
    numbered_frame,
    packets_of,
    rotate,
    write_tone,
    write_video,
)

RED, BLUE = (220, 30, 30), (30, 30, 220)


def near(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int = 40) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= tolerance)


def noisy(count: int) -> list[np.ndarray]:
    """Incompressible frames, so that all have a similar size in the file."""
    rng = np.random.default_rng(0)
    return [
        np.clip(numbered_frame(k).astype(int) + rng.integers(-20, 20, (48, 64, 1)), 0, 255).astype(np.uint8)
        for k in range(count)
    ]


def truncated(path: Path, fraction: float) -> Path:
    target = path.with_name(f"truncated-{path.name}")
    data = path.read_bytes()
    target.write_bytes(data[: int(len(data) * fraction)])
    return target


# Valid files


@pytest.mark.parametrize("name", ["v.mp4", "v.mov", "v.mkv", "v.webm", "v.avi", "v.gif"])
def test_every_container_gives_all_frames_and_times(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, 10)
    with open_source(str(path)) as source:
        frames = list(source)
    info = source.info
    assert [number_of(frame.image) for frame in frames] == list(range(10))
    assert [frame.index for frame in frames] == list(range(10))
    assert [frame.time for frame in frames] == pytest.approx([k / 10 for k in range(10)], abs=1e-3)
    assert (info.name, info.width, info.height, info.frame_count) == ("v", 64, 48, 10)
    assert info.fps == 10
    assert info.path == path
    assert not info.live
    assert source.warnings == []
    assert frames[0].image.dtype == np.uint8
    assert frames[0].image.shape == (48, 64, 3)
    assert near(frames[0].image[3, 3], RED, 60)
    assert near(frames[0].image[-4, -4], BLUE, 60)


def test_a_vertical_video_has_its_width_and_height(tmp_path: Path) -> None:
    with open_source(write_video(tmp_path / "v.mp4", 2, width=32, height=64)) as source:
        assert (source.info.width, source.info.height) == (32, 64)
        assert next(iter(source)).image.shape == (64, 32, 3)


# Positions of the red upper left and the blue lower right corner of the encoded frame.
TURNS = [
    (0, False, (3, 3), (-4, -4)),
    (90, False, (3, -4), (-4, 3)),
    (180, False, (-4, -4), (3, 3)),
    (270, False, (-4, 3), (3, -4)),
    (0, True, (3, -4), (-4, 3)),
]


@pytest.mark.parametrize(("clockwise", "mirrored", "red", "blue"), TURNS)
def test_the_display_matrix_is_applied(
    tmp_path: Path, clockwise: int, mirrored: bool, red: tuple[int, int], blue: tuple[int, int]
) -> None:
    path = rotate(write_video(tmp_path / "v.mp4", 2), clockwise, mirrored)
    with open_source(path) as source:
        image = next(iter(source)).image
    assert near(image[red], RED)
    assert near(image[blue], BLUE)
    assert (source.info.height, source.info.width) == image.shape[:2]
    assert image.shape[:2] == ((64, 48) if clockwise in (90, 270) else (48, 64))
    assert image.flags.c_contiguous


def test_times_of_a_variable_frame_rate_are_kept(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.4, 0.45, 1.0]
    with open_source(write_video(tmp_path / "v.mkv", times=times)) as source:
        assert [frame.time for frame in source] == pytest.approx(times, abs=1e-3)


def test_times_begin_at_zero_even_if_the_file_does_not(tmp_path: Path) -> None:
    with open_source(write_video(tmp_path / "v.mkv", 3, video_first=0.5)) as source:
        assert [frame.time for frame in source] == pytest.approx([0, 0.1, 0.2], abs=1e-3)
        assert source.info.start_time == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "width", "height"),
    [
        ("ffv1", "yuv444p", 63, 47),
        ("ffv1", "yuv420p10le", 64, 48),
        ("ffv1", "gray", 64, 48),
        ("ffv1", "gray16le", 64, 48),
        ("ffv1", "bgra", 64, 48),
    ],
)
def test_pixel_formats_and_odd_sizes_are_read(
    tmp_path: Path, codec: str, pix_fmt: str, width: int, height: int
) -> None:
    path = write_video(tmp_path / "v.mkv", 3, codec=codec, pix_fmt=pix_fmt, options={}, width=width, height=height)
    with open_source(path) as source:
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2]
    assert all(frame.image.shape == (height, width, 3) for frame in frames)
    if "gray" not in pix_fmt:
        assert near(frames[0].image[3, 3], RED, 12)


def test_frames_may_change_their_size_midway(tmp_path: Path) -> None:
    first = write_video(tmp_path / "a.h264", 3)
    second = write_video(tmp_path / "b.h264", 2, width=32, height=64)
    joined = tmp_path / "ab.h264"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with open_source(joined) as source:
        frames = list(source)
    assert [frame.image.shape[:2] for frame in frames] == [(48, 64)] * 3 + [(64, 32)] * 2
    # A bare stream has no times; they are computed from its rate.
    assert [frame.time for frame in frames] == pytest.approx([k / float(source.info.fps or 0) for k in range(5)])


def test_a_range_of_frames_keeps_index_and_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 8)
    with open_source(path, start=3, stop=6) as source:
        frames = list(source)
    assert [(frame.index, number_of(frame.image)) for frame in frames] == [(3, 3), (4, 4), (5, 5)]
    assert frames[0].time == pytest.approx(0.3, abs=1e-3)
    assert source.info.frame_count == 3
    assert "only 8 frames" in fault(path, start=9)
    assert "start is 4 and stop is 4" in fault(path, start=4, stop=4)


def test_iteration_continues_where_it_stopped_and_ends_on_close(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "v.mp4", 6))
    assert [frame.index for frame, _ in zip(source, range(2), strict=False)] == [0, 1]
    assert next(iter(source)).index in (2, 3)  # zip may have read one ahead
    source.close()
    source.close()
    assert list(source) == []


def test_metadata_that_is_not_utf8_is_ignored(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv", 3, title="AAAAAAAA")
    data = path.read_bytes()
    assert b"AAAAAAAA" in data
    path.write_bytes(data.replace(b"AAAAAAAA", b"caf\xe9 \xff\xfe!"))
    with open_source(path) as source:
        assert len(list(source)) == 3


def test_a_name_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "v.mp4", 2).rename(tmp_path / "http:v.mp4")
    monkeypatch.chdir(tmp_path)
    with open_source("http:v.mp4") as source:
        assert len(list(source)) == 2


def test_read_video_stacks_all_frames(tmp_path: Path) -> None:
    images = read_video(write_video(tmp_path / "v.mp4", 3))
    assert images.shape == (3, 48, 64, 3)
    assert [number_of(image) for image in images] == [0, 1, 2]


def test_read_video_refuses_frames_of_different_sizes(tmp_path: Path) -> None:
    for k, width in enumerate((64, 32)):
        Image.fromarray(numbered_frame(k, width)).save(tmp_path / f"{k}.png")
    with pytest.raises(VideoError, match="has frames of different sizes; read them one by one with open_source"):
        read_video(tmp_path)


# Invalid files


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    assert "'/no/such.mp4' does not exist" in fault("/no/such.mp4")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert f"'{empty}' is empty (0 bytes)" in fault(empty)
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(np.random.default_rng(0).integers(0, 256, 4000, np.uint8).tobytes())
    assert f"'{garbage}' cannot be read as a video" in fault(garbage)
    text = tmp_path / "notes.txt"
    text.write_text("A text that must not be read as a video.\n" * 20)
    assert f"'{text}' has no video" in fault(text)
    assert "neither a file nor a folder" in fault("/dev/null")
    assert "empty" in fault("")
    assert "cannot be opened" in fault("x" * 5000)
    assert len(fault("x" * 5000)) < 400
    assert "int" in fault(5)
    assert "fps is 0" in fault(tmp_path, fps=0)


@pytest.mark.parametrize(("name", "codec"), [("s.m4a", "aac"), ("s.mp3", "libmp3lame"), ("s.wav", "pcm_s16le")])
def test_an_audio_file_is_refused(tmp_path: Path, name: str, codec: str) -> None:
    path = write_tone(tmp_path / name, codec)
    assert f"'{path}' has only audio;" in fault(path)


def test_a_cover_image_is_not_a_video(tmp_path: Path) -> None:
    path = add_cover(write_tone(tmp_path / "s.mp3", "libmp3lame"))
    assert f"'{path}' has only audio and a cover image" in fault(path)


@pytest.mark.parametrize(
    ("name", "movflags"),
    [
        ("v.mp4", "faststart"),
        ("v.mov", "faststart"),
        ("v.mp4", "frag_keyframe+empty_moov"),
        ("v.mkv", None),
        ("v.webm", None),
        ("v.avi", None),
        ("v.gif", None),
    ],
)
def test_a_truncated_file_gives_its_complete_frames_and_a_warning(
    tmp_path: Path, name: str, movflags: str | None
) -> None:
    whole = write_video(tmp_path / name, 20, images=noisy(20), movflags=movflags)
    with open_source(whole) as source:
        assert len(list(source)) == 20
    assert source.warnings == []
    path = truncated(whole, 0.6)
    with open_source(path) as source:
        frames = list(source)
    assert 4 <= len(frames) < 20
    exact = [number_of(frame.image) for frame in frames]
    assert exact[:-1] == [k % 12 for k in range(len(frames) - 1)]
    assert len(source.warnings) == 1
    assert f"'{path}' is truncated" in source.warnings[0]
    assert f"first {len(frames)} frames" in source.warnings[0]


def test_a_truncated_frame_is_left_out(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "v.mp4", 10, images=noisy(10), movflags="faststart")
    position, size = packets_of(whole)[6]
    path = tmp_path / "truncated.mp4"
    path.write_bytes(whole.read_bytes()[: position + size // 2])
    with open_source(path) as source:
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == list(range(6))


def test_a_truncated_file_without_a_complete_frame_is_refused(tmp_path: Path) -> None:
    # The index is written last, so it is lost first.
    path = truncated(write_video(tmp_path / "v.mp4", 10, images=noisy(10)), 0.8)
    assert f"'{path}' is truncated" in fault(path)
    path = truncated(write_video(tmp_path / "v.mkv", 10, images=noisy(10)), 0.05)
    assert "none of its frames can be decoded" in fault(path)
    whole = write_video(tmp_path / "w.mp4", 4)
    data = whole.read_bytes()
    path = tmp_path / "headless.mp4"
    path.write_bytes(data[: data.index(b"moov") - 4])
    assert "its index (the moov box, written last) is missing" in fault(path)


def test_rare_encodings_of_sizes_are_understood(tmp_path: Path) -> None:
    # Matroska with an unknown size, as in live recordings, is not truncated.
    path = write_video(tmp_path / "v.mkv", 6)
    data = bytearray(path.read_bytes())
    size = data.index(b"\x18\x53\x80\x67") + 4
    data[size : size + 8] = b"\x01" + b"\xff" * 7
    path.write_bytes(data)
    with open_source(path) as source:
        assert len(list(source)) == 6
    assert source.warnings == []

    # MP4 with a 64-bit size, in the space of the free box before it.
    path = write_video(tmp_path / "v.mp4", 6)
    whole = path.read_bytes()
    mdat = whole.index(b"mdat") - 4
    length = int.from_bytes(whole[mdat : mdat + 4], "big")
    assert whole[mdat - 8 : mdat] == b"\0\0\0\x08free"
    large = whole[: mdat - 8] + b"\0\0\0\x01mdat" + (length + 8).to_bytes(8, "big") + whole[mdat + 8 :]
    path.write_bytes(large)
    with open_source(path) as source:
        assert len(list(source)) == 6
    assert source.warnings == []
    path.write_bytes(large[: mdat + length // 2])
    assert f"it has {mdat + length // 2} of its {mdat + length} bytes" in fault(path)

    # MP4 whose media data extend to the end of the file.
    path.write_bytes(whole[:mdat] + b"\0\0\0\0" + whole[mdat + 4 : mdat + length])
    assert "its index (the moov box, written last) is missing" in fault(path)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi"])
def test_damaged_packets_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, 12, images=noisy(12), gop=4)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(1)
    for position, size in (packets_of(path)[k] for k in (3, 7)):
        data[position + 4 : position + size] = rng.integers(0, 256, size - 4, np.uint8).tobytes()
    path.write_bytes(data)
    with open_source(path) as source:
        frames = list(source)
    assert len(frames) == 10
    assert source.warnings == [f"'{path}': 2 damaged packets were skipped; their frames are missing."]
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]


def test_a_file_with_only_damaged_packets_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 5)
    data = bytearray(path.read_bytes())
    for position, size in packets_of(path):
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    assert f"'{path}' has no frame that can be decoded as h264" in fault(path)


# Folders and images


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    names = ["10.jpg", "2.png", "1.JPEG", "frame9.bmp", "frame11.webp", "frame100.tif"]
    order = ["1", "2", "10", "frame9", "frame11", "frame100"]
    for name in names:
        Image.fromarray(numbered_frame(order.index(name.split(".")[0]))).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "._1.jpg").write_text("written by macOS")
    (tmp_path / "sub.png").mkdir()
    with open_source(tmp_path, fps=5) as source:
        frames = list(source)
    assert [frame.name for frame in frames] == order
    assert [number_of(frame.image) for frame in frames] == list(range(6))
    assert [frame.time for frame in frames] == pytest.approx([k / 5 for k in range(6)])
    assert source.info.frame_count == 6
    assert source.info.path is None
    assert (source.info.width, source.info.height) == (64, 48)
    with open_source(tmp_path, start=1, stop=3) as source:
        assert [(frame.index, frame.name, frame.time) for frame in source] == [(1, "2", None), (2, "10", None)]


def test_invalid_folders_are_refused(tmp_path: Path) -> None:
    assert f"'{tmp_path}' has no images" in fault(tmp_path)
    Image.fromarray(numbered_frame(0)).save(tmp_path / "1.png")
    assert "has only 1 frame," in fault(tmp_path, start=3)
    Image.fromarray(numbered_frame(0)).save(tmp_path / "1.jpg")
    assert "has both 1.jpg and 1.png" in fault(tmp_path)
    (tmp_path / "1.jpg").rename(tmp_path / "2.jpg")
    (tmp_path / "2.jpg").write_bytes(b"not an image")
    assert f"'{tmp_path / '2.jpg'}' is not an image" in fault(tmp_path)
    (tmp_path / "2.jpg").write_bytes(b"")
    assert f"'{tmp_path / '2.jpg'}' is empty" in fault(tmp_path)
    # The frames before the bad one are still read.
    with open_source(tmp_path) as source:
        assert next(iter(source)).name == "1"


def test_a_single_image_of_every_mode_is_read(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    rgb = numbered_frame(3)
    gray = rgb[..., 0]
    palette_image = Image.fromarray(rgb).quantize(16)
    images = {
        "gray": (Image.fromarray(gray), 96),
        "gray16": (Image.fromarray(gray.astype(np.uint16) * 257), 96),
        "rgba": (Image.fromarray(np.dstack([rgb, np.full(gray.shape, 204, np.uint8)])), 96 * 0.8 + 255 * 0.2),
        "palette": (palette_image, 96),
        "bits": (Image.fromarray(gray).point([0] * 90 + [255] * 166, "1"), 255),
    }
    for image, middle in images.values():
        image.save(path)
        with open_source(path) as source:
            (frame,) = source
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.dtype == np.uint8
        assert frame.name == "one"
        assert abs(int(frame.image[24, 32, 0]) - middle) <= 2


def test_exif_orientation_is_applied_in_folders_and_files(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    Image.fromarray(numbered_frame(0)).save(tmp_path / "1.jpg", exif=exif, quality=95)
    for spec in (tmp_path, tmp_path / "1.jpg"):
        with open_source(spec) as source:
            (frame,) = source
        assert frame.image.shape == (64, 48, 3)
        assert near(frame.image[3, -4], RED)
        assert (source.info.width, source.info.height) == (48, 64)


# Arrays and iterables


@pytest.mark.parametrize("shape", [(4, 6, 8, 3), (4, 6, 8, 4), (4, 6, 8, 1), (4, 6, 8)])
def test_arrays_are_sources(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with open_source(array, fps=2) as source:
        frames = list(source)
    wide = array[..., None] if array.ndim == 3 else array
    if wide.shape[-1] == 4:  # blended with white
        share = wide[..., 3:] / 255
        wide = (wide[..., :3] * share + 255 * (1 - share)).round().astype(np.uint8)
    for k, frame in enumerate(frames):
        assert np.array_equal(frame.image, np.broadcast_to(wide[k, ..., : min(3, wide.shape[-1])], (6, 8, 3)))
    assert [frame.time for frame in frames] == [0, 0.5, 1, 1.5]
    assert (source.info.width, source.info.height, source.info.frame_count) == (8, 6, 4)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "dtype float32"),
        (np.zeros((4, 4, 3), np.uint8), "single image"),
        (np.zeros((2, 3, 4, 5), np.uint8), "shape (2, 3, 4, 5)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "shape (0, 4, 4, 3)"),
        (np.zeros(5, np.uint8), "shape (5,)"),
    ],
)
def test_arrays_that_are_not_videos_are_refused(array: np.ndarray, words: str) -> None:
    assert words in fault(array)


def test_open_files_are_sources(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", 8)
    for file in (path.open("rb"), io.BytesIO(path.read_bytes())):
        with file, open_source(file, start=3) as source, open_source(path, start=3) as expected:
            for frame, other in zip(source, expected, strict=True):
                assert (frame.index, frame.time) == (other.index, other.time)
                assert np.array_equal(frame.image, other.image)
            assert source.warnings == []
    cut = io.BytesIO(path.read_bytes()[:-900])
    cut.name = "s3/clip.mkv?signature=secret"
    with open_source(cut) as source:
        assert 0 < len(list(source)) < 8
        assert "'clip.mkv' is truncated" in source.warnings[0]
        assert "secret" not in source.warnings[0]
    for content, words in ((b"", "is empty"), (b"no video at all" * 9, "cannot be read as a video")):
        with pytest.raises(VideoError, match=words):
            open_source(io.BytesIO(content))


def test_iterables_of_arrays_images_and_frames_are_sources() -> None:
    gray, colour = np.full((4, 6), 7, np.uint8), np.full((4, 6, 3), 8, np.uint8)
    alpha = np.full((4, 6, 4), (9, 9, 9, 255), np.uint8)
    ready = Frame(99, colour, time=1.25, name="ready")

    def frames() -> Iterator[Any]:
        yield from (gray, colour, alpha, Image.fromarray(gray), ready)

    with open_source(frames()) as source:
        read = list(source)
    assert [int(frame.image[0, 0, 0]) for frame in read] == [7, 8, 9, 7, 8]
    assert all(frame.image.shape == (4, 6, 3) for frame in read)
    assert [frame.index for frame in read] == [0, 1, 2, 3, 4]
    assert (read[4].time, read[4].name) == (1.25, "ready")
    assert source.info.frame_count is None
    assert open_source([gray, gray]).info.frame_count == 2


def test_errors_of_iterables_are_reported() -> None:
    good = np.zeros((4, 6, 3), np.uint8)
    assert "frame 1 of the iterable has dtype float64" in fault([good, np.zeros((4, 6, 3))])
    assert "frame 0 of the iterable has shape (3, 4, 6)" in fault([np.zeros((3, 4, 6), np.uint8)])
    assert "frame 0 of the iterable is 'a.png'" in fault(["a.png"])
    assert "dtype object" in fault([None])
    assert "had only 0 frames" in fault(iter(()))

    def breaks() -> Iterator[np.ndarray]:
        yield good
        raise RuntimeError("the camera failed")

    with open_source(breaks()) as source:
        assert next(iter(source)).index == 0
        with pytest.raises(RuntimeError, match="the camera failed"):
            next(iter(source))


def test_an_iterable_is_not_read_beyond_stop() -> None:
    requested = []

    def frames() -> Iterator[np.ndarray]:
        for k in range(10):
            requested.append(k)
            yield np.zeros((2, 2), np.uint8)

    with open_source(frames(), stop=3) as source:
        assert len(list(source)) == 3
    assert requested == [0, 1, 2]


# Cameras and addresses


@pytest.mark.parametrize("device", ["97", "/dev/video97"])
def test_a_missing_camera_is_reported(device: str) -> None:
    sentence = fault(f"camera:{device}")
    assert sentence.startswith(f"camera:{device}")
    assert "does not exist" in sentence or "cannot be opened" in sentence


def test_a_busy_or_inaccessible_camera_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for code, words in ((errno.EBUSY, "in use by another program"), (errno.EACCES, "is not accessible to this user")):

        def refuse(*_: Any, code: int = code, **__: Any) -> None:
            raise media_module.FFmpegError(code, "refused")

        monkeypatch.setattr(media_module.av, "open", refuse)
        assert words in fault("camera:0")


def test_a_camera_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    # FFmpeg's test pattern replaces the device; everything else is as for a camera.
    monkeypatch.setattr(media_module, "_camera_address", lambda _: ("testsrc=size=64x48:rate=10", "lavfi"))
    monkeypatch.setattr(media_module, "_NETWORK_TIMEOUT", 5.0)
    with open_source("camera:0", late="wait") as source:
        frames = [frame for frame, _ in zip(source, range(3), strict=False)]
    assert source.info.live
    assert source.info.path is None
    assert source.info.name == "camera-0"
    assert (source.info.width, source.info.height) == (64, 48)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.usefixtures("no_proxy")
def test_a_recording_is_read_over_http(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mkv", 4)
    with FolderServer(tmp_path) as url:
        with open_source(f"{url}/v.mkv?token=secret") as source:
            assert [number_of(frame.image) for frame in source] == [0, 1, 2, 3]
        assert source.info.name == "v"
        assert not source.info.live
        assert source.info.path is None
        assert "cannot be opened" in fault(f"{url}/none.mkv")


def test_addresses_that_cannot_be_opened_are_reported_without_passwords() -> None:
    sentence = fault("rtsp://user:secret@127.0.0.1:1/stream")
    assert "'rtsp://127.0.0.1:1' cannot be opened" in sentence
    assert "secret" not in sentence
    assert "unknown scheme gopher" in fault("gopher://host/v.mp4")


@pytest.mark.parametrize(
    ("given", "exact"),
    [(25, Fraction(25)), (29.97, Fraction(30000, 1001)), (23.976, Fraction(24000, 1001)), (12.5, Fraction(25, 2))],
)
def test_frame_rates_are_converted_to_exact_fractions(given: float, exact: Fraction) -> None:
    assert open_source(np.zeros((1, 2, 2), np.uint8), fps=given).info.fps == exact


# Forbidden files and secrets


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.ts\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "list.mp4", "list.sdp"])
def test_playlists_in_files_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "secret.ts", 3)
    (tmp_path / name).write_text(text)
    sentence = fault(tmp_path / name)
    assert sentence.startswith(f"'{tmp_path / name}' ")
    assert "give an mp4" in sentence
    assert "playlist" in sentence or "cannot be read as a video" in sentence


def test_vector_graphics_are_not_videos(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><image href="/etc/passwd"/></svg>')
    assert f"'{path}' has no video; give an mp4" in fault(path)


SECRETS = ("hunter", "pw", "streamkey", "token")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("rtsp://user:hunter2@127.0.0.1:1/stream", "'rtsp://127.0.0.1:1'"),
        ("rtsp://user:hunt@er2@127.0.0.1:1/stream", "'rtsp://127.0.0.1:1'"),
        ("rtsp://user:hunter/2@127.0.0.1:1/stream", "'rtsp://...'"),
        ("rtsp://user:1/hunter@127.0.0.1:1/stream", "'rtsp://...'"),
        ("rtsp://user:hunter#2@127.0.0.1:1/stream", "'rtsp://...'"),
        ("rtsp://user:hunter?2@127.0.0.1:1/stream", "'rtsp://...'"),
        ("RTMP://127.0.0.1:1/live/streamkey", "'rtmp://127.0.0.1:1'"),
        ("http://127.0.0.1:1/hls/streamkey.m3u8?token=token", "'http://127.0.0.1:1'"),
        ("http://[::1", "'http://[::1'"),
        ("http://127.0.0.1:hunter/", "'http://127.0.0.1'"),
        ("gopher://user:hunter@host/x", "'gopher://host'"),
        ("rtsp:/user:hunter2@127.0.0.1/stream", "begins with rtsp:"),
        ("rtsp:user:hunter2@127.0.0.1/stream", "begins with rtsp:"),
        ("rtspu:/user:hunter2@127.0.0.1/stream", "...@127.0.0.1/stream"),
        ("user:hunter/2@127.0.0.1/stream", "...@127.0.0.1/stream"),
    ],
)
def test_messages_show_only_scheme_and_host_of_an_address(address: str, expected: str) -> None:
    sentence = fault(address)
    assert expected in sentence
    assert not any(secret in sentence for secret in SECRETS)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://host/videos/dog%20run.mp4?sig=token", "dog run"),
        ("https://user:pw@host:8443/hls/streamkey.m3u8", "host-8443"),
        ("rtsp://10.0.0.1:554/stream", "10-0-0-1-554"),
        ("http://[::1]:80/stream", "1-80"),
        ("rtmp://host/live/streamkey.mp4", "host"),
        ("https://host/streamkey", "host"),
        ("rtsp://user:p/w@host/a", "stream"),
    ],
)
def test_outputs_are_not_named_after_stream_keys(address: str, name: str) -> None:
    assert addresses_module.name_of(address) == name


def test_file_addresses_are_read_as_files(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a dog #1.mp4", 3)
    for address in (path.as_uri(), f"file://localhost{path.as_uri()[7:]}", f"file:{path.as_uri()[7:]}"):
        with open_source(address) as source:
            assert len(list(source)) == 3
        assert source.info.path == path
    (tmp_path / "frames").mkdir()
    Image.fromarray(numbered_frame(0)).save(tmp_path / "frames" / "1.png")
    with open_source((tmp_path / "frames").as_uri()) as source:
        assert next(iter(source)).name == "1"
    assert "'/no/such.mp4' does not exist" in fault("file:///no/such.mp4")
    assert "on the machine 'server'" in fault("file://server/share/v.mp4")


def test_complete_heif_files_are_not_reported_as_truncated(tmp_path: Path) -> None:
    Image.fromarray(numbered_frame(4)).save(tmp_path / "a.avif", quality=95)
    shutil.copy(tmp_path / "a.avif", tmp_path / "a.mp4")
    for name in ("a.avif", "a.mp4"):
        with open_source(tmp_path / name) as source:
            assert [number_of(frame.image) for frame in source] == [4]
        assert source.warnings == []
    # Renamed to a codec without a decoder.
    data = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data.replace(b"av01", b"zz01").replace(b"av1C", b"zz1C"))
    assert "truncated" not in fault(tmp_path / "b.mp4")
    (tmp_path / "c.heic").write_bytes(data.replace(b"ftypavif", b"ftypheic"))
    assert "is a HEIF image; save it as JPEG" in fault(tmp_path / "c.heic")
    (tmp_path / "d.avif").write_bytes(data[: len(data) * 2 // 3])
    assert "cannot be read as an image" in fault(tmp_path / "d.avif")
