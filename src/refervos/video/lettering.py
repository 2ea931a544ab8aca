"""Text in any script, drawn into images with the bundled font and, where that lacks characters, with system fonts.

DejaVu Sans covers Latin, Greek, Cyrillic, Arabic, Hebrew and more. For Chinese, Japanese, Korean, Indic and other
scripts, system fonts are searched. Complex shaping and right-to-left text need a Pillow built with Raqm.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import ImageDraw, ImageFont, features

_BUNDLED = Path(__file__).parent.parent / "assets" / "fonts" / "DejaVuSans.ttf"
# Invisible joiners and variation selectors.
_JOINERS = {"\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}", *map(chr, range(0xFE00, 0xFE10))}
# Scripts that need shaping: Hebrew to South East Asia, and the Arabic presentation forms.
_SHAPED = ((0x0590, 0x109F), (0x1780, 0x18AF), (0xFB1D, 0xFDFF), (0xFE70, 0xFEFF))
# Words in font file names that make a font more, and less, suitable for a legend.
_PLAINER = ("sans", "gothic", "regular", "cjk", "noto")
_FANCIER = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "condensed", "serif", "math", "symbol")
_COLOURED = ("emoji",)  # bitmaps of one size, which cannot be drawn as text


@dataclass(frozen=True)
class _Face:
    """One font of a font file."""

    path: Path
    index: int


class Lettering:
    """Text renderer with one font size.

    Args:
        size: Approximate line height in pixels.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        main = _font(_Face(_BUNDLED, 0), size)
        ascent, descent = main.getmetrics()
        self._rise = (ascent - descent) / 2  # from the baseline to the middle of a line

    def length(self, text: str) -> float:
        """Return the width of a line in pixels."""
        return sum(font.getlength(part) for part, font in self._parts(text))

    def fitted(self, text: str, width: float) -> str:
        """Shorten a line with an ellipsis if it is wider than ``width`` pixels."""
        if self.length(text) <= width:
            return text
        return text[: self._count(text, width, "...")].rstrip() + "..."

    def wrapped(self, text: str, width: float) -> list[str]:
        """Break a text into lines of at most ``width`` pixels, splitting words that are wider."""
        lines: list[str] = []
        for word in text.split():
            if lines and self.length(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
                continue
            while word:
                count = max(1, self._count(word, width))
                lines.append(word[:count])
                word = word[count:]
        return lines

    def _count(self, text: str, width: float, end: str = "") -> int:
        """Return how many characters of a text, followed by ``end``, fit into ``width`` pixels."""
        low, high = 0, min(len(text), round(width))
        while low < high:
            middle = (low + high + 1) // 2
            if self.length(text[:middle].rstrip() + end) <= width:
                low = middle
            else:
                high = middle - 1
        return low

    def write(
        self, draw: ImageDraw.ImageDraw, left: float, middle: float, text: str, ink: tuple[int, int, int, int]
    ) -> None:
        """Draw a line.

        Args:
            draw: Drawing context.
            left: x of its left end.
            middle: y of its vertical middle.
            text: The line, see ``drawable_text``.
            ink: RGBA from 0 to 255.
        """
        for part, font in self._parts(text):
            draw.text((left, middle + self._rise), part, ink, font, anchor="ls")
            left += font.getlength(part)

    def _parts(self, text: str) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
        for part, face in _by_face(text):
            yield part, _font(face, self._size)


def drawable_text(text: str) -> str:
    """Put a text on one line and replace characters that cannot be drawn or change the text direction."""
    text = " ".join(text.split())
    joiners = _JOINERS if can_shape() else set()
    return "".join(
        character if character.isprintable() or character in joiners else "\N{REPLACEMENT CHARACTER}"
        for character in text
        if character not in _JOINERS - joiners
    )


def can_write() -> bool:
    """Return whether any text can be drawn."""
    return bool(features.check("freetype2"))


def can_shape() -> bool:
    """Return whether complex scripts and right-to-left text are drawn correctly."""
    return bool(features.check("raqm"))


def drawing_problem(text: str) -> str | None:
    """Describe the problem with drawing a text.

    Args:
        text: The text.

    Returns:
        A sentence; None if there is no problem.
    """
    if not can_write():
        return "The legend is omitted, because this Pillow was built without FreeType; install a Pillow with FreeType."
    line = drawable_text(text)
    missing = "".join(dict.fromkeys(character for part, face in _by_face(line) if face is None for character in part))
    if missing:
        return (
            f"No font on this system has the characters '{missing[:20]}', so they are drawn as boxes; install one that "
            "does, such as Noto Sans."
        )
    if not can_shape() and any(low <= ord(character) <= high for character in line for low, high in _SHAPED):
        return (
            "Letters of complex scripts are drawn unjoined, because this Pillow was built without Raqm; "
            "install a Pillow with Raqm."
        )
    return None


@functools.lru_cache(maxsize=64)
def _font(face: _Face | None, size: int) -> ImageFont.FreeTypeFont:
    face = face or _Face(_BUNDLED, 0)  # draws a box
    return ImageFont.truetype(str(face.path), size, index=face.index)


@functools.lru_cache(maxsize=256)
def _by_face(text: str) -> tuple[tuple[str, _Face | None], ...]:
    """Split a line into parts, each with a font that has all of its characters, or None."""
    own = _Face(_BUNDLED, 0)
    known = _characters(own)
    missing = frozenset(character for character in text if ord(character) not in known and character not in _JOINERS)
    others = _faces_for(missing) if missing else ()
    parts: list[tuple[str, _Face | None]] = []
    for character in text:
        if character in _JOINERS and parts:
            face = parts[-1][1]
        elif character not in missing:
            # Spaces and punctuation between characters of another script belong to that script.
            last = parts[-1][1] if parts else own
            face = last if last and not character.isalnum() and ord(character) in _characters(last) else own
        else:
            face = next((other for other in others if ord(character) in _characters(other)), None)
        if parts and parts[-1][1] == face:
            parts[-1] = (parts[-1][0] + character, face)
        else:
            parts.append((character, face))
    return tuple(parts)


@functools.lru_cache(maxsize=64)
def _faces_for(characters: frozenset[str]) -> tuple[_Face, ...]:
    """Choose few system fonts that cover the characters, plain ones first."""
    wanted = {ord(character) for character in characters}
    chosen: list[_Face] = []
    for face in _system_faces():
        if not wanted:
            break
        if wanted & _characters(face) and _can_be_drawn(face):
            chosen.append(face)
            wanted -= _characters(face)
    return tuple(chosen)


def _can_be_drawn(face: _Face) -> bool:
    try:
        _font(face, 16).getlength("a")
    except (OSError, ValueError):
        return False
    return True


def _folders() -> list[Path]:
    """Return the font folders of the system."""
    home = Path.home()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", str(home / "AppData" / "Local"))
        return [
            Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts",
            Path(local) / "Microsoft" / "Windows" / "Fonts",
        ]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = os.environ.get("XDG_DATA_HOME") or str(home / ".local" / "share")
    return [*(Path(folder) / "fonts" for folder in [*shared.split(":"), own] if folder), home / ".fonts"]


@functools.lru_cache(maxsize=1)
def _system_faces() -> tuple[_Face, ...]:
    files: set[Path] = set()
    for folder in _folders():
        for place, _, names in os.walk(folder):
            files.update(
                Path(place) / name for name in names if name.lower().endswith((".ttf", ".otf", ".ttc", ".otc"))
            )

    def plainness(path: Path) -> tuple[int, str]:
        name = path.name.lower()
        return sum(word in name for word in _FANCIER) - sum(word in name for word in _PLAINER), str(path)

    kept = [path for path in sorted(files, key=plainness) if not any(word in path.name.lower() for word in _COLOURED)]
    return tuple(_Face(path, 0) for path in kept)


@functools.lru_cache(maxsize=256)
def _characters(face: _Face) -> frozenset[int]:
    """Return the characters of a font from its ``cmap`` table (OpenType); empty if it cannot be read."""
    try:
        with face.path.open("rb") as file:
            return frozenset(_mapped(file, _font_begin(file, face.index)))
    except (OSError, struct.error, ValueError, MemoryError):
        return frozenset()


def _read(file: BinaryIO, form: str, at: int) -> tuple[int, ...]:
    file.seek(at)
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _font_begin(file: BinaryIO, index: int) -> int:
    if _read(file, ">I", 0) == (0x74746366,):  # "ttcf", a font collection
        return _read(file, ">I", 12 + 4 * index)[0]
    return 0


def _mapped(file: BinaryIO, begin: int) -> Iterator[int]:
    (tables,) = _read(file, ">H", begin + 4)
    for k in range(tables):
        tag, _, at, _ = _read(file, ">IIII", begin + 12 + 16 * k)
        if tag == 0x636D6170:  # "cmap"
            break
    else:
        return
    (count,) = _read(file, ">H", at + 2)
    found = {}
    for k in range(count):
        platform, encoding, offset = _read(file, ">HHI", at + 4 + 8 * k)
        if platform == 0 or (platform == 3 and encoding in (1, 10)):  # Unicode
            (form,) = _read(file, ">H", at + offset)
            found[form] = at + offset
    if 12 in found:
        yield from _mapped_in_groups(file, found[12])
    elif 4 in found:
        yield from _mapped_in_segments(file, found[4])


def _mapped_in_groups(file: BinaryIO, at: int) -> Iterator[int]:
    (groups,) = _read(file, ">I", at + 12)
    if groups > 0x20000:
        raise ValueError("more groups than there are characters")
    numbers = _read(file, f">{3 * groups}I", at + 16)
    for first, last, glyph in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        yield from range(first + (glyph == 0), min(last, 0x10FFFF) + 1)


def _mapped_in_segments(file: BinaryIO, at: int) -> Iterator[int]:
    length, _, twice = _read(file, ">HHH", at + 2)
    count = twice // 2
    ends = _read(file, f">{count}H", at + 14)
    starts = _read(file, f">{count}H", at + 16 + twice)
    deltas = _read(file, f">{count}H", at + 16 + 2 * twice)
    offsets_at = at + 16 + 3 * twice
    words: Sequence[int] = _read(file, f">{max(0, (length - 16 - 3 * twice) // 2)}H", offsets_at)
    for k, (start, end, delta) in enumerate(zip(starts, ends, deltas, strict=True)):
        offset = words[k] if k < len(words) else 0
        for code in range(start, end + 1):
            if code == 0xFFFF:
                continue
            place = k + offset // 2 + code - start
            glyph = code + delta if not offset else (words[place] + delta if place < len(words) and words[place] else 0)
            if glyph & 0xFFFF:
                yield code
