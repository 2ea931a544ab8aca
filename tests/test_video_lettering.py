"""Sentences of any script in the legend."""

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
def fresh() -> Iterator[None]:
    """What was found out about fonts is forgotten."""

    def forget() -> None:
        for cached in (module._by_face, module._faces_for, module._system_faces, module._letters, module._font):
            cached.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system whose only folder of fonts is empty."""
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
    """A font in which each letter is a filled square of its own size."""
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
def test_the_font_that_comes_along_knows_many_scripts(no_fonts: Path, text: str) -> None:
    assert drawing_problem(text) is None or not module.can_shape()
    box = drawn("\N{CJK UNIFIED IDEOGRAPH-6771}")
    for letter in set(text) - {" "}:
        seen = drawn(letter)
        assert seen.any(), letter
        assert seen.shape != box.shape or (seen != box).any(), letter


@pytest.mark.skipif(not module.can_shape(), reason="a Pillow without Raqm")
def test_arabic_letters_are_joined_and_run_from_right_to_left() -> None:
    letters = Lettering(30)
    assert letters.length("ببب") < 0.8 * 3 * letters.length("ب")
    # Alef, which joins nothing before it, comes first and so stands at the right.
    image = drawn("اب")
    tall = np.flatnonzero(image[: image.shape[0] // 2 - 4].any(axis=0))
    assert tall.min() > image.shape[1] / 2


def test_without_shaping_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "can_shape", lambda: False)
    assert "drawn unjoined" in str(drawing_problem("مرحبا"))
    assert drawing_problem("the dog") is None


def test_letters_that_no_font_has_are_said_once(no_fonts: Path, tmp_path: Path) -> None:
    sentence = drawing_problem("東京 tower")
    assert sentence == (
        "No font here has the letters '東京', which are drawn as boxes; install one that has, such as Noto Sans."
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


def test_fonts_of_the_system_stand_in_for_what_is_missing(no_fonts: Path) -> None:
    (no_fonts / "deep").mkdir()
    write_font(no_fonts / "deep" / "NotoSansCJK-Regular.ttf", "東京")
    write_font(no_fonts / "Hangul-Bold.ttf", "한東")
    (no_fonts / "broken.ttf").write_bytes(b"\0\1\0\0" + b"\xff" * 40)
    (no_fonts / "NotoColorEmoji.ttf").write_bytes(b"not looked at")
    (no_fonts / "empty.otf").touch()
    assert drawing_problem("東京 한 tower") is None
    assert "'語'" in str(drawing_problem("東語"))
    # The plainer of the two is taken for what both have: its square for it is the smaller.
    assert np.count_nonzero(drawn("東") > 128) == pytest.approx((0.150 * 30) ** 2, rel=0.35)
    assert np.count_nonzero(drawn("京") > 128) == pytest.approx((0.200 * 30) ** 2, rel=0.35)
    # Letters of several fonts stand on one line, one after the other.
    text = "a東한b"
    letters = Lettering(30)
    assert letters.length(text) == pytest.approx(letters.length("a") + 2 * 18 + letters.length("b"), abs=1)
    rows = [np.flatnonzero((drawn(letter) > 128).any(axis=1)).max() for letter in "a東한"]
    assert max(rows) - min(rows) <= 1


def test_collections_of_fonts_are_read(no_fonts: Path) -> None:
    tt = pytest.importorskip("fontTools.ttLib")
    one = tt.TTFont(write_font(no_fonts.parent / "a.ttf", "東"))
    two = tt.TTFont(write_font(no_fonts.parent / "b.ttf", "京"))
    collection = tt.TTCollection()
    collection.fonts = [one, two]
    collection.save(no_fonts / "both.ttc")
    assert drawing_problem("東") is None


def test_every_character_a_font_has_is_known(no_fonts: Path) -> None:
    tt = pytest.importorskip("fontTools.ttLib")
    path = write_font(no_fonts / "far.ttf", "\N{CJK UNIFIED IDEOGRAPH-6771}\N{LINEAR B SYLLABLE B008 A}")
    for face in (path, module._BUNDLED):
        assert module._letters(module._Face(face, 0)) == set(tt.TTFont(face).getBestCmap())


def test_joiners_and_turning_marks_do_no_harm(no_fonts: Path) -> None:
    for text in ("a\u200db", "a\ufe0fb", "\u202eturned", "\ud800", "", "\u200d"):
        shown = module.drawable_text(text)
        assert "\u202e" not in shown
        drawn(shown)
    assert drawing_problem("a\u200db") is None


def test_a_pillow_without_fonts_draws_no_legend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("refervos.video.overlay.can_write", lambda: False)
    monkeypatch.setattr(module, "can_write", lambda: False)
    image = np.full((240, 320, 3), 90, np.uint8)
    given = Segmentation(0, (0,), ("a dog",), np.zeros((1, 240, 320), bool), np.ones(1, np.float32), np.zeros(1, bool))
    assert np.array_equal(draw_overlay(image, given, palette(1)), image)
    with OverlayImageSink(tmp_path / "o.png") as sink:
        sink.write(Frame(0, image), given)
    assert "The legend is left out" in sink.warnings[0]


@pytest.mark.parametrize("text", ["a dog that jumps over the fence", "W" * 50, "一只狗跳过篱笆 a", "", "i"])
@pytest.mark.parametrize("room", [1, 60, 200, 10_000])
def test_wrapped_lines_fit_and_lose_nothing(text: str, room: int) -> None:
    letters = Lettering(16)
    lines = letters.wrapped(text, room)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(len(line) == 1 or letters.length(line) <= room for line in lines)
    if letters.length(text) <= room:
        assert lines == [text] * bool(text)
