"""Download drawings of everyday objects for training: python -m refervos.worlds.drawings FOLDER.

Free emoji designs are downloaded from the npm registry at fixed versions, checked against their digests, and rendered
as cut-outs named after the nouns of ``nouns.txt``. None of them is part of this package.

    pip install 'refervos[drawings]'
    python -m refervos.worlds.drawings out/drawings

writes ``out/drawings/<design>/<noun>/<drawing>.png``, a few photographs for backgrounds in ``out/drawings/grounds``, a
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
from refervos.worlds.sprites import PHOTOGRAPH_FOLDER, Sprites

REGISTRY = "https://registry.npmjs.org"
LICENCE_FILE = "LICENCES.md"

UNSEEN_DESIGN = "twemoji"
"""The design that no model of the project is trained on; it tests generalisation to unseen drawings."""


@dataclass(frozen=True)
class Design:
    """Set of drawings in one style.

    Attributes:
        name: Name of its folder.
        package: Package on the npm registry.
        version: Version of the package.
        digest: SHA-512 of the archive, base64, as published by the registry.
        licence: Licence of the drawings.
        source: Author and address of the drawings.
    """

    name: str
    package: str
    version: str
    digest: str
    licence: str
    source: str

    @property
    def url(self) -> str:
        """Address of the archive."""
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
"""Names and tags of emoji: some thousand everyday words, from which a text encoder learns which meanings are close."""

PHOTOGRAPHS = (
    ("aitzgorri_by_Aitzol_Berasategi.jpg", "CC-BY-4.0"),
    ("life_by_Aitzol_Berasategi.jpg", "CC-BY-4.0"),
    ("picosdeeuropa_by_Aitzol_Berasategi.jpg", "CC-BY-4.0"),
    ("seeding_by_Clements_Engelhardt.jpg", "CC0-1.0"),
    ("sunset_by_Aitzol_Berasategi.jpg", "CC-BY-4.0"),
)
"""Landscapes for backgrounds and their licences; none shows an object of the table of nouns prominently."""

PHOTOGRAPH_PACKAGE = (
    "http://deb.debian.org/debian/pool/main/l/lomiri-wallpapers/lomiri-wallpapers-16.04_20.04.0-2_all.deb"
)
PHOTOGRAPH_DIGEST = "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab"
"""SHA-256 of the Debian package that contains them."""

HUE_SHIFTS = (0.25, 0.5, 0.75)
"""Hue shifts, as fractions of the colour circle, for drawings in one colour of objects that may have any colour."""


class _Icons:
    """Vector drawings of one Iconify package, by name and, if the package lists them, by code point."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.icons = json.loads(files["package/icons.json"])
        listed = json.loads(files.get("package/chars.json", b"{}"))
        self.names = {_bare_code(code): name for code, name in listed.items()}
        known = (*self.icons["icons"], *self.icons.get("aliases", {}))
        self.spellings = {_simplified(name): name for name in known}

    def find(self, code: str, names: Sequence[str]) -> str | None:
        """Return the drawing of a code point as SVG; ``names`` from other designs are tried if this one lists none."""
        own = self.names.get(_bare_code(code))
        for name in (own, *(self.spellings.get(_simplified(name)) for name in names if not self.names)):
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


def _bare_code(code: str) -> str:
    """Remove the variation selector for coloured emoji from a code point."""
    return re.sub(r"-fe0f", "", code.lower())


def _simplified(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def make_drawings(
    folder: Path,
    *,
    size: int = 96,
    designs: Sequence[Design] = DESIGNS,
    nouns: Mapping[str, EverydayNoun] | None = None,
    fetch: Callable[[str], bytes] | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, int]:
    """Download the designs and write their cut-outs.

    Args:
        folder: Output folder; existing files are overwritten.
        size: Side of a drawing in pixels.
        designs: The designs.
        nouns: The nouns, default those of the table.
        fetch: Returns the bytes of an archive by its address, default over the network.
        log: Receives progress messages.

    Returns:
        Number of images of each design.

    Raises:
        MissingDependencyError: When resvg is not installed.
        DataError: When an archive cannot be downloaded or differs from the published one.
    """
    nouns = everyday_nouns() if nouns is None else nouns
    archives = {design.name: _unpack(design, fetch or _download) for design in designs}
    icons = {name: _Icons(files) for name, files in archives.items() if "package/icons.json" in files}
    # Not every package lists its code points; names from the other packages help to find its drawings.
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
                image = _render(files, icons.get(design.name), code, known.get(_bare_code(code), ()), size)
                if image is None or _fills_square(image):
                    continue
                for suffix, variant in _hue_variants(image, noun):
                    path = folder / design.name / noun.word / f"{code}{suffix}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    variant.save(path)
                    counts[design.name] += 1
        log(f"{design.name}: {counts[design.name]} images ({design.licence})")
    lines = [
        f"- `{design.name}`: {design.source}; {design.licence}; npm {design.package} {design.version}"
        for design in designs
    ]
    (folder / LICENCE_FILE).write_text("# Sources of the drawings\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return counts


def make_words(folder: Path, *, fetch: Callable[[str], bytes] | None = None) -> int:
    """Download a list of everyday words and write it as ``words.txt``, one per line.

    Args:
        folder: Folder of the drawings.
        fetch: Returns the bytes of the archive by its address, default over the network.

    Returns:
        Number of words.

    Raises:
        DataError: When the archive cannot be downloaded or differs from the published one.
    """
    files = _unpack(WORDS, fetch or _download)
    entries = json.loads(files["package/en/data.json"])
    found = {word.lower() for entry in entries for word in (entry["label"], *entry.get("tags", ()))}
    words = sorted(word for word in found if re.fullmatch(r"[a-z]{2,}( [a-z]{2,})?", word))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return len(words)


def make_photographs(folder: Path, *, fetch: Callable[[str], bytes] | None = None) -> int:
    """Download the photographs for backgrounds and write them into the sub-folder ``grounds``.

    Args:
        folder: Folder of the drawings.
        fetch: Returns the bytes of the package by its address, default over the network.

    Returns:
        Number of photographs.

    Raises:
        DataError: When the package cannot be downloaded or differs from the published one.
    """
    data = (fetch or _download)(PHOTOGRAPH_PACKAGE)
    found = hashlib.sha256(data).hexdigest()
    if found != PHOTOGRAPH_DIGEST:
        raise DataError(
            f"{PHOTOGRAPH_PACKAGE} differs from the published package: its SHA-256 is {found}, not {PHOTOGRAPH_DIGEST}."
        )
    photographs = folder / PHOTOGRAPH_FOLDER
    photographs.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(_data_archive(data))) as archive:
        for name, _ in PHOTOGRAPHS:
            member = archive.extractfile(f"./usr/share/backgrounds/{name}")
            assert member is not None  # the digest was checked
            (photographs / name).write_bytes(member.read())
    lines = [
        f"- `{PHOTOGRAPH_FOLDER}/{name}`: {licence}; Debian lomiri-wallpapers-16.04" for name, licence in PHOTOGRAPHS
    ]
    with (folder / LICENCE_FILE).open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return len(PHOTOGRAPHS)


def _data_archive(package: bytes) -> bytes:
    """Extract the tar archive of a Debian package's files, a member of an ar archive (deb(5))."""
    offset = len(b"!<arch>\n")
    while offset + 60 <= len(package):
        name, size = package[offset : offset + 16].strip(), int(package[offset + 48 : offset + 58])
        if name.startswith(b"data.tar"):
            return package[offset + 60 : offset + 60 + size]
        offset += 60 + size + size % 2
    raise DataError("the Debian package has no data.tar.")


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=120) as response:
            data: bytes = response.read()
            return data
    except (urllib.error.URLError, OSError) as error:
        raise DataError(
            f"{url} cannot be downloaded ({error}); check the network connection and run the command again."
        ) from error


def _unpack(design: Design, fetch: Callable[[str], bytes]) -> dict[str, bytes]:
    data = fetch(design.url)
    found = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != design.digest:
        raise DataError(
            f"{design.url} differs from the published archive: its SHA-512 is {found}, not {design.digest}."
        )
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [member for member in archive if member.isfile()]
        return {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def _render(
    files: Mapping[str, bytes], icons: _Icons | None, code: str, names: Sequence[str], size: int
) -> Image.Image | None:
    if icons is None:  # one image for each code point
        for name in (code, _bare_code(code), f"{code}-fe0f"):
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
        raise MissingDependencyError("rendering SVG needs resvg; install refervos[drawings].") from error
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return image.convert("RGBA")


def _hue_variants(image: Image.Image, noun: EverydayNoun) -> Iterator[tuple[str, Image.Image]]:
    """Yield a drawing and, if it has one hue and its noun is recolourable, copies in other hues."""
    yield "", image
    if not noun.recolourable or not _has_one_hue(image):
        return
    hue, saturation, value = image.convert("RGB").convert("HSV").split()
    for number, shift in enumerate(HUE_SHIFTS, start=1):
        shifted = hue.point([(level + round(256 * shift)) % 256 for level in range(256)])
        colours = Image.merge("HSV", (shifted, saturation, value)).convert("RGB")
        colours.putalpha(image.getchannel("A"))
        yield f"-{number}", colours


def _fills_square(image: Image.Image) -> bool:
    """Return whether a drawing has no transparent part worth mentioning."""
    return bool((np.asarray(image.getchannel("A")) >= 128).mean() > 0.97)


def _has_one_hue(image: Image.Image) -> bool:
    """Return whether enough of an image is vivid and nearly all vivid pixels have one hue."""
    pixels = np.asarray(image, np.float32)
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
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m refervos.worlds.drawings", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="output folder for the cut-outs")
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
    print(f"{len(sprites.cutouts)} images of {len(by_noun)} nouns, {enough} of them in at least three designs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
