"""Image files as frames: every bit depth and format, and untrusted files."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, features

from refervos.errors import DataError, VideoError
from refervos.files.images import MAX_PIXELS, image_file_size, opened_image, read_image
from refervos.video import open_source
from video_files import fault, number_of, numbered_frame, packets_of, png, write_video


def tiff(path: Path, values: np.ndarray, *, order: str = "<", deflated: bool = False) -> Path:
    """Write a TIFF with 16-bit colours, which Pillow can read but not write."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if deflated else data
    tags = [(256, width), (257, height), (258, None), (259, 8 if deflated else 1), (262, 2), (273, None)]
    tags += [(277, channels), (278, height), (279, len(data)), (284, 1)]
    bits = 8 + 2 + 12 * len(tags) + 4
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    for tag, value in tags:
        if tag == 258:
            out += struct.pack(f"{order}HHII", tag, 3, channels, bits)
        else:
            out += struct.pack(f"{order}HHII", tag, 4, 1, bits + 2 * channels if value is None else value)
    path.write_bytes(out + struct.pack(f"{order}I", 0) + struct.pack(f"{order}{channels}H", *[16] * channels) + data)
    return path


def only_frame(path: Path) -> np.ndarray:
    with open_source(path) as source:
        (frame,) = source
    return frame.image


# Bit depth


SHADES = np.linspace(0, 255, 48 * 64).round().reshape(48, 64)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["gray.png", "gray.tif", "rgb.png", "rgba.png", "la.png", "le.tif", "be.tif", "z.tif"])
def test_values_that_use_fewer_bits_than_stored_have_the_right_brightness(tmp_path: Path, bits: int, kind: str) -> None:
    white = 2**bits - 1
    gray = (SHADES / 255 * white).round().astype(np.uint16)
    colours = np.dstack([gray, gray[::-1], gray[:, ::-1]])
    alpha = np.full_like(gray, white)
    path = tmp_path / kind
    if kind.startswith("gray"):
        Image.fromarray(gray).save(path)
    elif kind == "rgb.png":
        png(path, colours)
    elif kind == "rgba.png":
        png(path, np.dstack([colours, alpha]))
    elif kind == "la.png":
        png(path, np.dstack([gray, alpha]))
    else:
        tiff(path, colours, order=">" if kind == "be.tif" else "<", deflated=kind == "z.tif")
    with open_source(path) as source:
        (frame,) = source
    expected = colours if kind.startswith(("rgb", "le", "be", "z")) else np.dstack([gray] * 3)
    assert np.abs(frame.image - expected / white * 255).max() <= 1
    assert source.warnings == []
    note = [f"'{path}' has more than 8 bits per channel; {white} is used as white."]
    assert source.notes == (note if bits < 16 else [])


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1 / 255, np.float32), (1, np.float32), (16, np.float32), (2**20 / 255, np.int32)]
)
def test_floats_and_large_integers_have_the_right_brightness(tmp_path: Path, scale: float, dtype: type) -> None:
    Image.fromarray((SHADES * scale).astype(dtype)).save(tmp_path / "a.tif")
    image = only_frame(tmp_path / "a.tif")
    assert image.max() >= 250 / 4
    assert np.corrcoef(image[..., 0].ravel(), SHADES.ravel())[0, 1] > 0.999


def test_nan_and_infinity_become_black_or_white(tmp_path: Path) -> None:
    values = np.array([[np.nan, -np.inf, -0.5, 0.5, 1.2, np.inf]], np.float32).repeat(2, axis=0)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert only_frame(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]


def test_frames_of_a_folder_share_a_white_level(tmp_path: Path) -> None:
    # Each alone would be taken for 8, 10 or 12 bits, and the brightness would flicker.
    for k, top in enumerate((200, 900, 4000, 200)):
        Image.fromarray(np.full((8, 8), top, np.uint16)).save(tmp_path / f"{k}.png")
    with open_source(tmp_path) as source:
        values = [int(frame.image[0, 0, 0]) for frame in source]
    assert values == [round(top / 4095 * 255) for top in (200, 900, 4000, 200)]
    assert source.notes == [f"'{tmp_path}' has more than 8 bits per channel; 4095 is used as white."]


def test_a_frame_brighter_than_all_samples_is_reported(tmp_path: Path) -> None:
    for k in range(40):
        Image.fromarray(np.full((4, 4), 60000 if k == 4 else 1000, np.uint16)).save(tmp_path / f"{k}.png")
    with open_source(tmp_path) as source:
        values = [int(frame.image[0, 0, 0]) for frame in source]
    assert values[:5] == [round(1000 / 1023 * 255)] * 4 + [round(60000 / 65535 * 255)]
    assert f"'{tmp_path}' has larger values in frame 4 than before" in source.notes[1]
    assert len(source.notes) == 2


# Transparency


def test_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    hidden = np.full((8, 8, 4), (220, 30, 30, 0), np.uint8)
    hidden[2:6, 2:6, 3] = 255
    hidden[0, 0, 3] = 51
    gray = np.dstack([np.full((8, 8), 40, np.uint8), hidden[..., 3]])
    Image.fromarray(hidden).save(tmp_path / "rgba.png")
    Image.fromarray(hidden).save(tmp_path / "rgba.webp", lossless=True, exact=True)
    Image.fromarray(hidden).save(tmp_path / "rgba.tif")
    Image.fromarray(gray).save(tmp_path / "la.png")
    deep = hidden.astype(np.uint16) * 257
    png(tmp_path / "deep.png", deep)
    palette_image = Image.fromarray(np.where(hidden[..., 3] == 255, 1, 0).astype(np.uint8))
    palette_image.putpalette([220, 30, 30, 10, 200, 10])
    palette_image.save(tmp_path / "palette.png", transparency=0)
    for name, inside in (
        ("rgba.png", (220, 30, 30)),
        ("rgba.webp", (220, 30, 30)),
        ("rgba.tif", (220, 30, 30)),
        ("deep.png", (220, 30, 30)),
        ("la.png", (40, 40, 40)),
        ("palette.png", (10, 200, 10)),
    ):
        image = only_frame(tmp_path / name)
        assert image[4, 4].tolist() == list(inside), name
        assert image[7, 7].tolist() == [255, 255, 255], name
        if name.startswith("rgba"):
            assert np.abs(image[0, 0] - (np.array(inside) * 0.2 + 255 * 0.8)).max() <= 1
    # The same image as an array, as a PIL image, and as one frame of a folder.
    with open_source([hidden, Image.fromarray(hidden)]) as source:
        assert all(np.array_equal(frame.image, only_frame(tmp_path / "rgba.png")) for frame in source)
    with open_source(hidden[None]) as source:
        assert next(iter(source)).image[7, 7].tolist() == [255, 255, 255]
    for path in tmp_path.iterdir():
        path.rename(path.with_stem(f"{path.stem}-{path.suffix[1:]}"))
    with open_source(tmp_path) as source:
        assert all(frame.image[7, 7].tolist() == [255, 255, 255] for frame in source)


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mkv", "ffv1", "bgra"), ("a.mkv", "ffv1", "yuva444p")])
def test_transparent_pixels_of_a_video_are_blended_with_white(
    tmp_path: Path, name: str, codec: str, pix_fmt: str
) -> None:
    image = np.full((16, 16, 4), (220, 30, 30, 0), np.uint8)
    image[4:12, 4:12, 3] = 255
    path = write_video(
        tmp_path / name, 2, width=16, height=16, codec=codec, pix_fmt=pix_fmt, options={}, images=[image] * 2
    )
    with open_source(path) as source:
        image = next(iter(source)).image
    assert image[0, 0].tolist() == [255, 255, 255]
    assert np.abs(image[8, 8].astype(int) - (220, 30, 30)).max() < 6


# EXIF


def broken_exif() -> bytes:
    """Orientation 6, and a numeric tag (259) stored as text."""
    entries = struct.pack("<HHI4s", 0x0103, 2, 4, b"abc\0") + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (broken_exif(), True),
        (b"Exif\0\0II*\0\x08\0\0\0\xff\xff", False),
        (b"Exif\0\0no tags at all", False),
        (b"Exif\0\0", False),
        (b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\x02\0\x08\0\0\0\xff\xff\xff\xff", False),
    ],
)
@pytest.mark.parametrize("name", ["1.jpg", "1.png", "1.webp"])
def test_images_with_broken_exif_are_read(tmp_path: Path, exif: bytes, turned: bool, name: str) -> None:
    Image.fromarray(numbered_frame(0)).save(tmp_path / name, exif=exif)
    for spec in (tmp_path, tmp_path / name):
        assert only_frame(spec).shape == ((64, 48, 3) if turned else (48, 64, 3))
    assert read_image(tmp_path / name, DataError).shape[:2] == image_file_size(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["1.jpg", "1.png", "1.tif", "1.webp", "1.avif"])
def test_every_exif_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(numbered_frame(0)).save(tmp_path / name, exif=exif, quality=95)
    image = only_frame(tmp_path / name)
    assert image.shape[:2] == image_file_size(tmp_path / name) == ((64, 48) if orientation > 4 else (48, 64))
    # Position of the red upper left corner of the stored image.
    row, column = {1: (3, 3), 2: (3, -4), 3: (-4, -4), 4: (-4, 3), 5: (3, 3), 6: (3, -4), 7: (-4, -4), 8: (-4, 3)}[
        orientation
    ]
    assert np.abs(image[row, column].astype(int) - (220, 30, 30)).max() < 40


# Untrusted files


def test_postscript_named_png_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    (tmp_path / "1.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    )
    for spec in (tmp_path, tmp_path / "1.png"):
        assert f"'{tmp_path / '1.png'}' is not an image in a supported format; give JPEG, PNG" in fault(spec)
    with pytest.raises(DataError, match="is not an image"):
        read_image(tmp_path / "1.png", DataError)


@pytest.mark.parametrize("size", [(30000, 5000), (20000, 20000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)])
def test_an_oversized_image_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    # If it were decoded, its missing data would be reported instead.
    path = png(tmp_path / "1.png", np.zeros((4, 4, 3), np.uint8), size=size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sentence = fault(path)
    assert f"'{path}' is" in sentence
    assert "at most 67,108,864 pixels are read, so scale it down" in sentence


def test_an_oversized_video_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mp4", 2)
    data = bytearray(path.read_bytes())
    for position, size in packets_of(path):  # if it were decoded, its damage would be reported instead
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    monkeypatch.setattr("refervos.files.images.MAX_PIXELS", 64 * 48 - 1)
    assert f"'{path}' is 64x48; at most 3,071 pixels are read, so scale it down." in fault(path)


def test_a_pipe_named_like_an_image_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "2.png")
    with pytest.raises(VideoError, match="is not a regular file"), opened_image(tmp_path / "2.png"):
        pass
    Image.fromarray(numbered_frame(0)).save(tmp_path / "1.png")
    with open_source(tmp_path) as source:
        assert len(list(source)) == 1
    assert source.notes == [f"'{tmp_path}' has 2.png, which is not read."]


# Folders


def test_every_image_format_is_read_as_a_frame(tmp_path: Path) -> None:
    names = ["f0.png", "f1.jpg", "f2.avif", "f3.JPG", "f4.jfif", "f5.gif", "f6.jpe", "f7.TIFF", "f8.webp", "f9.bmp"]
    for k, name in enumerate(names):
        form = "JPEG" if name.endswith(("JPG", "jfif", "jpe")) else None
        Image.fromarray(numbered_frame(k)).save(tmp_path / name, form)
    with open_source(tmp_path) as source:
        assert [(frame.name, number_of(frame.image)) for frame in source] == [(f"f{k}", k) for k in range(10)]
    assert source.notes == source.warnings == []


def test_entries_of_a_folder_that_are_not_read_are_listed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "notes.txt").touch()
    assert f"'{tmp_path}' has no images, only notes.txt and sub/; put" in fault(tmp_path)
    Image.fromarray(numbered_frame(0)).save(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    for name in (".hidden.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    with open_source(tmp_path) as source:
        assert len(list(source)) == 1
    assert source.notes == [f"'{tmp_path}' has 2.png, notes.txt and sub/, which are not read."]
    for k in range(20):
        (tmp_path / f"IMG_{k}.heic").touch()
    with open_source(tmp_path) as source:
        assert source.notes == [f"'{tmp_path}' has 2.png, IMG_0.heic, IMG_1.heic and 20 more, which are not read."]


def test_only_the_first_image_of_a_file_in_a_folder_is_a_frame_and_this_is_reported(tmp_path: Path) -> None:
    pages = [Image.fromarray(numbered_frame(k)) for k in range(3)]
    pages[0].save(tmp_path / "1.tif", save_all=True, append_images=pages[1:])
    pages[1].save(tmp_path / "2.png")
    pages[2].save(tmp_path / "3.gif", save_all=True, append_images=pages[:1])
    with open_source(tmp_path) as source:
        assert [number_of(frame.image) for frame in source] == [0, 1, 2]
    assert source.notes == [
        f"'{tmp_path}' has 1.tif and 3.gif with several images each, of which only the first is a frame."
    ]


# Files with several images


@pytest.mark.parametrize("name", ["a.tif", "a.webp", "a.png", "a.avif"])
def test_images_of_a_file_are_frames(tmp_path: Path, name: str) -> None:
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF support")
    pages = [Image.fromarray(numbered_frame(k)) for k in range(6)]
    options: dict[str, Any] = {} if name == "a.tif" else {"duration": [100, 100, 200, 100, 100, 100]}
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], **options)
    times = [None] * 6 if name == "a.tif" else pytest.approx([0, 0.1, 0.2, 0.4, 0.5, 0.6])
    with open_source(tmp_path / name) as source:
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert [frame.time for frame in frames] == times
    assert [(frame.index, frame.name) for frame in frames] == [(k, None) for k in range(6)]
    assert (source.info.name, source.info.frame_count, source.info.path) == ("a", 6, None)
    assert source.notes == source.warnings == []
    with open_source(tmp_path / name, start=3, stop=5, fps=5) as source:
        frames = list(source)
    assert [(frame.index, number_of(frame.image)) for frame in frames] == [(3, 3), (4, 4)]
    assert [frame.time for frame in frames] == pytest.approx([0.6, 0.8] if name == "a.tif" else [0.4, 0.5])
    assert "has only 6 frames, so none is left from frame 6 on" in fault(tmp_path / name, start=6)


def test_a_12_bit_stack_shares_a_white_level(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((8, 8), top, np.uint16)) for top in (200, 4000, 900)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with open_source(tmp_path / "a.tif") as source:
        assert [int(frame.image[0, 0, 0]) for frame in source] == [round(t / 4095 * 255) for t in (200, 4000, 900)]


def test_smaller_versions_in_a_tiff_are_not_frames(tmp_path: Path) -> None:
    from PIL import TiffImagePlugin

    small = TiffImagePlugin.ImageFileDirectory_v2()
    small[254] = 1
    half = Image.fromarray(numbered_frame(0)[::2, ::2])
    half.encoderinfo = {"tiffinfo": small}
    Image.fromarray(numbered_frame(0)).save(tmp_path / "a.tif", save_all=True, append_images=[half])
    with Image.open(tmp_path / "a.tif") as image:
        image.seek(1)
        assert image.tag_v2.get(254) == 1  # type: ignore[attr-defined]
    with open_source(tmp_path / "a.tif") as source:
        assert [frame.image.shape for frame in source] == [(48, 64, 3)]
    assert source.info.frame_count == 1
    assert source.notes == [
        f"'{tmp_path / 'a.tif'}' has 2 images; smaller versions and auxiliary images are not used as frames."
    ]


def test_auxiliary_images_of_a_phone_are_not_frames(tmp_path: Path) -> None:
    pages = [Image.fromarray(numbered_frame(k)) for k in range(2)]
    pages[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pages[1:])
    with open_source(tmp_path / "a.jpg") as source:
        (frame,) = source
    assert (frame.name, number_of(frame.image)) == ("a", 0)


def test_a_truncated_stack_gives_its_complete_frames(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.random.default_rng(k).integers(0, 255, (48, 64, 3), np.uint8)) for k in range(6)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with Image.open(tmp_path / "a.tif") as image:
        image.seek(4)
        offset = image.tag_v2[273][0]  # type: ignore[attr-defined]
    (tmp_path / "a.tif").write_bytes(data[: offset + 10])
    indices: list[int] = []
    with (
        pytest.raises(VideoError, match=r"a\.tif' cannot be read as an image"),
        open_source(tmp_path / "a.tif") as source,
    ):
        indices.extend(frame.index for frame in source)
    assert len(indices) <= 4
