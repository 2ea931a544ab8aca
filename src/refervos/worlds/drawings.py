"""Make the folder of drawn things from which everyday nouns are learnt: python -m refervos.worlds.drawings FOLDER.

Free emoji designs are fetched from the npm registry at fixed versions, checked against their digests, and rendered as
cut-outs named after the nouns of ``nouns.txt``. Nothing of them is part of this package.

    pip install 'refervos[drawings]'
    python -m refervos.worlds.drawings out/drawings

makes ``out/drawings/<design>/<noun>/<drawing>.png``, a few photographs for backgrounds in ``out/drawings/grounds``, a
list of words in ``out/drawings/words.txt``, and ``out/drawings/LICENCES.md``.
"""

from __future__ import annotations

import argparse
import base64
import colorsys
import hashlib
import io
import json
import re
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from refervos.errors import DataError, MissingDependencyError, RefervosError
from refervos.worlds.nouns import EverydayNoun, everyday_nouns
from refervos.worlds.sprites import GROUNDS, Sprites

REGISTRY = "https://registry.npmjs.org"
LICENCES = "LICENCES.md"

UNSEEN_DESIGN = "twemoji"
"""The design that no model of the project is ever trained on: it is the test of drawings never seen."""


@dataclass(frozen=True)
class Design:
    """One set of drawings.

    Attributes:
        name: What its folder is called.
        package: On the npm registry.
        version: Of the package.
        digest: SHA-512 of the archive, base64, as the registry publishes it.
        licence: Of the drawings.
        source: Who drew them.
    """

    name: str
    package: str
    version: str
    digest: str
    licence: str
    source: str

    @property
    def address(self) -> str:
        """Where the archive is."""
        return f"{REGISTRY}/{self.package}/-/{self.package.rpartition('/')[2]}-{self.version}.tgz"


DESIGNS = (
    Design(
        "fluent",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT",
        "Fluent Emoji, Microsoft, https://github.com/microsoft/fluentui-emoji",
    ),
    Design(
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        "Noto Emoji, Google, https://github.com/googlefonts/noto-emoji",
    ),
    Design(
        "noto-v1",
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
        "Noto Emoji of 2017, Google, https://github.com/googlefonts/noto-emoji",
    ),
    Design(
        "emojione",
        "@iconify-json/emojione",
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0",
        "EmojiOne 2, Ranks.com, https://github.com/joypixels/emojione",
    ),
    Design(
        "fxemoji",
        "@iconify-json/fxemoji",
        "1.2.2",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Apache-2.0",
        "FxEmojis, Mozilla, https://github.com/mozilla/fxemoji",
    ),
    Design(
        UNSEEN_DESIGN,
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        "Twemoji, Twitter, https://github.com/twitter/twemoji",
    ),
)

WORDS = Design(
    "words",
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
    "emojibase, https://github.com/milesj/emojibase",
)
"""Names and tags of emoji: some thousand everyday words, from which a text encoder learns what is near to what."""

PHOTOGRAPHS = (
    ("aitzgorri_by_Aitzol_Berasategi.jpg", "CC-BY-4.0"),
    ("life_by_Aitzol_Berasategi.jpg", "CC-BY-4.0"),
    ("picosdeeuropa_by_Aitzol_Berasategi.jpg", "CC-BY-4.0"),
    ("seeding_by_Clements_Engelhardt.jpg", "CC0-1.0"),
    ("sunset_by_Aitzol_Berasategi.jpg", "CC-BY-4.0"),
)
"""Landscapes for backgrounds, in which nothing of the table of nouns stands out, and their licences."""

PHOTOGRAPH_PACKAGE = (
    "http://deb.debian.org/debian/pool/main/l/lomiri-wallpapers/lomiri-wallpapers-16.04_20.04.0-2_all.deb"
)
PHOTOGRAPH_DIGEST = "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab"
"""The Debian package that has them, and its SHA-256."""

TURNS = (0.25, 0.5, 0.75)
"""Parts of the colour circle by which a drawing in one clear colour is turned, where the thing may have any colour."""


class _Icons:
    """Vector drawings of one Iconify package: names to bodies, and code points to names where it lists them."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.icons = json.loads(files["package/icons.json"])
        listed = json.loads(files.get("package/chars.json", b"{}"))
        self.names = {_plain(code): name for code, name in listed.items()}
        known = (*self.icons["icons"], *self.icons.get("aliases", {}))
        self.spellings = {_squashed(name): name for name in known}

    def find(self, code: str, names: Sequence[str]) -> str | None:
        """The drawing of a code point as SVG; by the names that other designs give it where this lists none."""
        own = self.names.get(_plain(code))
        for name in (own, *(self.spellings.get(_squashed(name)) for name in names if not self.names)):
            if name is None:
                continue
            parent = self.icons.get("aliases", {}).get(name, {}).get("parent", name)
            icon = self.icons["icons"].get(parent)
            if icon is not None:
                width, height = (icon.get(side, self.icons.get(side, 16)) for side in ("width", "height"))
                return (
                    f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
                )
        return None


def _plain(code: str) -> str:
    """A code point without the mark that asks for a coloured drawing."""
    return re.sub(r"-fe0f", "", code.lower())


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def make_drawings(
    folder: Path,
    *,
    size: int = 96,
    designs: Sequence[Design] = DESIGNS,
    nouns: Mapping[str, EverydayNoun] | None = None,
    fetch: Callable[[str], bytes] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, int]:
    """Fetch the designs and write their cut-outs.

    Args:
        folder: Where to; what is there already is written anew.
        size: Side of a drawing in pixels.
        designs: The designs.
        nouns: The nouns, default those of the table.
        fetch: Gets an archive's bytes by its address, default over the network.
        say: Told what is done.

    Returns:
        How many pictures each design gave.

    Raises:
        MissingDependencyError: When resvg is not installed.
        DataError: When an archive cannot be fetched or is not the one that was published.
    """
    nouns = everyday_nouns() if nouns is None else nouns
    archives = {design.name: _unpacked(design, fetch or _download) for design in designs}
    icons = {name: _Icons(files) for name, files in archives.items() if "package/icons.json" in files}
    # Not every package lists its code points: the others tell the names.
    known: dict[str, list[str]] = {}
    for drawn in icons.values():
        for code, name in drawn.names.items():
            known.setdefault(code, []).append(name)
    counts = {}
    for design in designs:
        files = archives[design.name]
        counts[design.name] = 0
        for noun in nouns.values():
            for code in noun.drawings:
                picture = _picture(files, icons.get(design.name), code, known.get(_plain(code), ()), size)
                if picture is None or _is_a_scene(picture):
                    continue
                for suffix, turned in _in_colours(picture, noun):
                    path = folder / design.name / noun.word / f"{code}{suffix}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    turned.save(path)
                    counts[design.name] += 1
        say(f"{design.name}: {counts[design.name]} pictures ({design.licence})")
    lines = [
        f"- `{design.name}`: {design.source}; {design.licence}; npm {design.package} {design.version}"
        for design in designs
    ]
    (folder / LICENCES).write_text("# Where the drawings come from\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return counts


def make_words(folder: Path, *, fetch: Callable[[str], bytes] | None = None) -> int:
    """Fetch a list of everyday words and write it as ``words.txt``, one a line.

    Args:
        folder: Of the drawings.
        fetch: Gets the archive's bytes by its address, default over the network.

    Returns:
        How many there are.

    Raises:
        DataError: When the archive cannot be fetched or is not the one that was published.
    """
    files = _unpacked(WORDS, fetch or _download)
    entries = json.loads(files["package/en/data.json"])
    told = {word.lower() for entry in entries for word in (entry["label"], *entry.get("tags", ()))}
    words = sorted(word for word in told if re.fullmatch(r"[a-z]{2,}( [a-z]{2,})?", word))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return len(words)


def make_photographs(folder: Path, *, fetch: Callable[[str], bytes] | None = None) -> int:
    """Fetch the photographs for backgrounds and write them into the sub-folder ``grounds``.

    Args:
        folder: Of the drawings.
        fetch: Gets the package's bytes by its address, default over the network.

    Returns:
        How many there are.

    Raises:
        DataError: When the package cannot be fetched or is not the one that was published.
    """
    data = (fetch or _download)(PHOTOGRAPH_PACKAGE)
    found = hashlib.sha256(data).hexdigest()
    if found != PHOTOGRAPH_DIGEST:
        raise DataError(f"{PHOTOGRAPH_PACKAGE} is not the package that was published: its SHA-256 is {found}.")
    grounds = folder / GROUNDS
    grounds.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(_contents(data))) as archive:
        for name, _ in PHOTOGRAPHS:
            member = archive.extractfile(f"./usr/share/backgrounds/{name}")
            assert member is not None  # the digest says so
            (grounds / name).write_bytes(member.read())
    lines = [f"- `{GROUNDS}/{name}`: {licence}; Debian lomiri-wallpapers-16.04" for name, licence in PHOTOGRAPHS]
    with (folder / LICENCES).open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return len(PHOTOGRAPHS)


def _contents(package: bytes) -> bytes:
    """The tar archive of a Debian package's files: one member of an ar archive (deb(5))."""
    place = len(b"!<arch>\n")
    while place + 60 <= len(package):
        name, size = package[place : place + 16].strip(), int(package[place + 48 : place + 58])
        if name.startswith(b"data.tar"):
            return package[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    raise DataError("the Debian package has no data.tar.")


def _download(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=120) as answer:
            data: bytes = answer.read()
            return data
    except (urllib.error.URLError, OSError) as error:
        raise DataError(
            f"{address} cannot be fetched ({error}); a connection to the npm registry is needed."
        ) from error


def _unpacked(design: Design, fetch: Callable[[str], bytes]) -> dict[str, bytes]:
    data = fetch(design.address)
    found = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != design.digest:
        raise DataError(
            f"{design.address} is not the archive that was published: SHA-512 {found}, not {design.digest}."
        )
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [member for member in archive if member.isfile()]
        return {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def _picture(
    files: Mapping[str, bytes], icons: _Icons | None, code: str, names: Sequence[str], size: int
) -> Image.Image | None:
    if icons is None:  # one picture for each code point
        for name in (code, _plain(code), f"{code}-fe0f"):
            data = files.get(f"package/assets/{name}.webp")
            if data is not None:
                with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
                    return image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
        return None
    svg = icons.find(code, names)
    if svg is None:
        return None
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise MissingDependencyError("drawing SVG needs resvg; install refervos[drawings].") from error
    drawn = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    with Image.open(io.BytesIO(drawn), formats=["PNG"]) as image:
        return image.convert("RGBA")


def _in_colours(picture: Image.Image, noun: EverydayNoun) -> Iterator[tuple[str, Image.Image]]:
    """A drawing, and its turns to other hues where it is of one clear colour and its thing may have any."""
    yield "", picture
    if not noun.recolourable or not _of_one_colour(picture):
        return
    hue, saturation, value = picture.convert("RGB").convert("HSV").split()
    for number, turn in enumerate(TURNS, start=1):
        turned = hue.point([(level + round(256 * turn)) % 256 for level in range(256)])
        colours = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
        colours.putalpha(picture.getchannel("A"))
        yield f"-{number}", colours


def _is_a_scene(picture: Image.Image) -> bool:
    """Whether a drawing fills its square, so that nothing is cut out."""
    return bool((np.asarray(picture.getchannel("A")) >= 128).mean() > 0.97)


def _of_one_colour(picture: Image.Image) -> bool:
    """Whether nearly all that is vivid in a picture has one hue, and enough of it is vivid."""
    pixels = np.asarray(picture, np.float32)
    vivid = [
        colorsys.rgb_to_hsv(*(pixel[:3] / 255))
        for pixel in pixels[::2, ::2].reshape(-1, 4)
        if pixel[3] >= 128 and pixel[:3].max() > 90 and np.ptp(pixel[:3]) > 0.35 * pixel[:3].max()
    ]
    opaque = int((pixels[::2, ::2, 3] >= 128).sum())
    if len(vivid) < 0.45 * max(1, opaque):
        return False
    angles = 2 * np.pi * np.array([hue for hue, _, _ in vivid])
    return bool(np.hypot(np.cos(angles).mean(), np.sin(angles).mean()) > 0.9)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the build step from the command line."""
    parser = argparse.ArgumentParser(prog="python -m refervos.worlds.drawings", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write the cut-outs")
    parser.add_argument("--size", type=int, default=96, help="side of a drawing in pixels (default 96)")
    options = parser.parse_args(arguments)
    try:
        make_drawings(options.folder, size=options.size)
        make_photographs(options.folder)
        make_words(options.folder)
    except RefervosError as error:
        print(error, file=sys.stderr)
        return 2
    sprites: Sprites = Sprites.open(options.folder)
    by_noun: dict[str, set[str]] = {}
    for design in DESIGNS:
        for path in (options.folder / design.name).iterdir():
            by_noun.setdefault(path.name, set()).add(design.name)
    enough = sum(len(found) >= 3 for found in by_noun.values())
    print(f"{len(sprites.pictures)} pictures of {len(by_noun)} nouns, {enough} of them in at least three designs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
