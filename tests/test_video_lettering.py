"""Legend text in any script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from refervos.segmentation import Segmentation
from refervos.video import Frame, OverlayImageSink, draw_overlay, palette
from refervos.video import lettering as module
from refervos.video.lettering import Lettering, drawing_problem


@pytest.fixture(autouse=True)
def clean_caches() -> Iterator[None]:
    """Clear the caches of fonts."""

    def clear() -> None:
        for cached in (module._by_face, module._faces_for, module._system_faces, module._characters, module._font):
            cached.cache_clear()

    clear()
    yield
    clear()


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system whose only font folder is empty."""
    folder = tmp_path / "fonts"
    folder.mkdir()
    monkeypatch.setattr(module, "_folders", lambda: [folder, tmp_path / "gone"])
    return folder


def drawn(text: str, size: int = 30) -> np.ndarray:
    letters = Lettering(size)
    image = Image.new("L", (max(1, round(letters.length(text)) + 20), 2 * size))
    letters.write(ImageDraw.Draw(image), 10, size, text, 255)  # type: ignore[arg-type]
    return np.asarray(image)


def write_font(path: Path, letters: str, *, wide: int = 600) -> Path:
    """Write a font in which each letter is a filled square of a different size."""
    builder_module = pytest.importorskip("fontTools.fontBuilder")
    pen_module = pytest.importorskip("fontTools.pens.ttGlyphPen")
    names = [".notdef", *(f"letter{k}" for k in range(len(letters)))]
    glyphs = {}
    for k, name in enumerate(names):
        pen = pen_module.TTGlyphPen(None)
        side = 100 + 50 * k
        pen.moveTo((50, 0))
        pen.lineTo((50, side))
        pen.lineTo((50 + side, side))
        pen.lineTo((50 + side, 0))
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder = builder_module.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): names[k + 1] for k, letter in enumerate(letters)})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (wide, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.mark.parametrize(
    "text",
    ["the dog", "größe naïve Łódź", "Ελληνικά λέξη", "русский жук", "ქართული", "Հայերեն", "½ → ∞ «»", "שלום", "مرحبا"],
)
def test_the_bundled_font_covers_many_scripts(no_fonts: Path, text: str) -> None:
    assert drawing_problem(text) is None or not module.can_shape()
    box = drawn("\N{CJK UNIFIED IDEOGRAPH-6771}")
    for letter in set(text) - {" "}:
        image = drawn(letter)
        assert image.any(), letter
        assert image.shape != box.shape or (image != box).any(), letter


@pytest.mark.skipif(not module.can_shape(), reason="a Pillow without Raqm")
def test_arabic_is_joined_and_drawn_from_right_to_left() -> None:
    letters = Lettering(30)
    assert letters.length("ببب") < 0.8 * 3 * letters.length("ب")
    # Alef, the tall letter, comes first and is therefore on the right.
    image = drawn("اب")
    tall = np.flatnonzero(image[: image.shape[0] // 2 - 4].any(axis=0))
    assert tall.min() > image.shape[1] / 2


def test_missing_shaping_is_reported_for_complex_scripts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "can_shape", lambda: False)
    assert "drawn unjoined" in str(drawing_problem("مرحبا"))
    assert drawing_problem("the dog") is None


def test_characters_without_a_font_are_reported_once(no_fonts: Path, tmp_path: Path) -> None:
    sentence = drawing_problem("東京 tower")
    assert sentence == (
        "No font on this system has the characters '東京', so they are drawn as boxes; install one that does, "
        "such as Noto Sans."
    )
    given = Segmentation(
        0,
        (0, 1),
        ("東京 tower", "東京 tower"),
        np.zeros((2, 240, 320), bool),
        np.ones(2, np.float32),
        np.zeros(2, bool),
    )
    for legend in (True, False):
        with OverlayImageSink(tmp_path / f"{legend}.png", legend=legend) as sink:
            sink.write(Frame(0, np.zeros((240, 320, 3), np.uint8)), given)
        assert sink.warnings == ([sentence] if legend else [])


def test_system_fonts_supply_missing_characters(no_fonts: Path) -> None:
    (no_fonts / "deep").mkdir()
    write_font(no_fonts / "deep" / "NotoSansCJK-Regular.ttf", "東京")
    write_font(no_fonts / "Hangul-Bold.ttf", "한東")
    (no_fonts / "broken.ttf").write_bytes(b"\0\1\0\0" + b"\xff" * 40)
    (no_fonts / "NotoColorEmoji.ttf").write_bytes(b"never opened")
    (no_fonts / "empty.otf").touch()
    assert drawing_problem("東京 한 tower") is None
    assert "'語'" in str(drawing_problem("東語"))
    # If both have a character, the plainer font is used: its square is the smaller one.
    assert np.count_nonzero(drawn("東") > 128) == pytest.approx((0.150 * 30) ** 2, rel=0.35)
    assert np.count_nonzero(drawn("京") > 128) == pytest.approx((0.200 * 30) ** 2, rel=0.35)
    # Letters of several fonts are on one line, one after the other.
    text = "a東한b"
    letters = Lettering(30)
    assert letters.length(text) == pytest.approx(letters.length("a") + 2 * 18 + letters.length("b"), abs=1)
    rows = [np.flatnonzero((drawn(letter) > 128).any(axis=1)).max() for letter in "a東한"]
    assert max(rows) - min(rows) <= 1


def test_font_collections_are_read(no_fonts: Path) -> None:
    tt = pytest.importorskip("fontTools.ttLib")
    one = tt.TTFont(write_font(no_fonts.parent / "a.ttf", "東"))
    two = tt.TTFont(write_font(no_fonts.parent / "b.ttf", "京"))
    collection = tt.TTCollection()
    collection.fonts = [one, two]
    collection.save(no_fonts / "both.ttc")
    assert drawing_problem("東") is None


def test_the_characters_of_a_font_are_those_that_fonttools_finds(no_fonts: Path) -> None:
    tt = pytest.importorskip("fontTools.ttLib")
    path = write_font(no_fonts / "far.ttf", "\N{CJK UNIFIED IDEOGRAPH-6771}\N{LINEAR B SYLLABLE B008 A}")
    (bundled,) = Path(module.__file__).parents[1].rglob("DejaVuSans.ttf")
    codes = {code for font in (path, bundled) for code in tt.TTFont(font).getBestCmap()}
    for plane in (0x0, 0x10000):
        for begin in range(plane, plane + 0x10000, 16):
            letters = "".join(chr(code) for code in range(begin, begin + 16) if chr(code).isprintable())
            missing = [letter for letter in letters.replace(" ", "") if ord(letter) not in codes]
            problem = drawing_problem(letters) or ""
            assert ("has the characters" in problem) == bool(missing), letters
            assert not missing or f"'{''.join(missing)}'" in problem


def test_joiners_and_direction_marks_are_handled(no_fonts: Path) -> None:
    for text in ("a\u200db", "a\ufe0fb", "\u202eturned", "\ud800", "", "\u200d"):
        line = module.drawable_text(text)
        assert "\u202e" not in line
        drawn(line)
    assert drawing_problem("a\u200db") is None


def test_the_legend_is_omitted_without_freetype(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("refervos.video.overlay.can_write", lambda: False)
    monkeypatch.setattr(module, "can_write", lambda: False)
    image = np.full((240, 320, 3), 90, np.uint8)
    given = Segmentation(0, (0,), ("a dog",), np.zeros((1, 240, 320), bool), np.ones(1, np.float32), np.zeros(1, bool))
    assert np.array_equal(draw_overlay(image, given, palette(1)), image)
    with OverlayImageSink(tmp_path / "o.png") as sink:
        sink.write(Frame(0, image), given)
    assert "The legend is omitted" in sink.warnings[0]


@pytest.mark.parametrize("text", ["a dog that jumps over the fence", "W" * 50, "一只狗跳过篱笆 a", "", "i"])
@pytest.mark.parametrize("width", [1, 60, 200, 10_000])
def test_wrapped_lines_fit_and_keep_all_text(text: str, width: int) -> None:
    letters = Lettering(16)
    lines = letters.wrapped(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(len(line) == 1 or letters.length(line) <= width for line in lines)
    if letters.length(text) <= width:
        assert lines == [text] * bool(text)
