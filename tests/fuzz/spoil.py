"""Ways in which people, disks, networks and attackers corrupt valid inputs, drawn by hypothesis."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

T = TypeVar("T")


class Draw(Protocol):
    """Function that draws a value from a strategy, such as ``data.draw``."""

    def __call__(self, strategy: st.SearchStrategy[T]) -> T: ...


def one_of(draw: Draw, *options: T) -> T:
    """Draw one of several values."""
    return draw(st.sampled_from(options))


def number_below(draw: Draw, limit: int) -> int:
    """Draw a whole number from 0 and below a limit of at least 1."""
    return draw(st.integers(0, max(0, limit - 1)))


# Values.

TEXTS = (
    *("", " ", "a", "\x1b[31mred\x1b[0m", "two\nlines", "nul\0", "\ud800", "\u202etxet", "x" * 5000, "NaN", "null"),
    *("../../../../etc/hostname", "/etc/hostname", "~/x", "a/b", "..", ".", "C:\\x", "=1+1", "-1", "1e999", "%s{0}"),
    *("/dev/zero", "http://localhost:1/x", "\N{DOG FACE}", "é" * 300, "00000", "0", "-0"),
)

NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 255, 256, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 10**30),
    *(0.0, 0.5, -0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
)


def odd_value(draw: Draw) -> Any:
    """Draw a plain value that is rarely valid."""
    kind = one_of(draw, "text", "number", "number", "constant", "list", "object", "deep")
    if kind == "text":
        return one_of(draw, *TEXTS)
    if kind == "number":
        return one_of(draw, *NUMBERS)
    if kind == "constant":
        return one_of(draw, None, True, False)
    if kind == "list":
        return [one_of(draw, None, 0, "a", []) for _ in range(one_of(draw, 0, 1, 3, 1000))]
    if kind == "object":
        return one_of(draw, {}, {"": 0}, {"a": {"b": None}}, {"0": []})
    deep: Any = one_of(draw, [], {})
    for _ in range(one_of(draw, 3, 70, 900)):
        deep = [deep] if isinstance(deep, list) else {"a": deep}
    return deep


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each nested value, including the value itself."""
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _places(part, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value[:8]):
            yield from _places(part, (*path, index))


def spoil_value(draw: Draw, value: T) -> Any:
    """Return a copy of nested lists and dicts with one change.

    Changes include renamed keys, slightly different numbers, other signs, and values copied from another place.
    """
    value = copy.deepcopy(value)
    places = list(_places(value))
    # Shallow places are few but decide most, so they are drawn more often.
    depth = one_of(draw, *sorted({len(place) for place in places}))
    place = one_of(draw, *[place for place in places if len(place) == depth])
    if not place:
        return odd_value(draw) if one_of(draw, *[False] * 3, True) else value
    holder: Any = value
    for key in place[:-1]:
        holder = holder[key]
    if isinstance(holder, tuple):
        return value
    key, old = place[-1], holder[place[-1]]
    kind = one_of(draw, "replace", "replace", "nudge", "nudge", "remove", "rename", "double", "exchange", "more")
    if kind == "remove":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[one_of(draw, *TEXTS, f"{key}x", str(key).upper())] = holder.pop(key)
    elif kind == "double" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(old))
    elif kind == "exchange":
        other: Any = value
        for step in one_of(draw, *places):
            other = other[step]
        holder[key] = copy.deepcopy(other)
    elif kind == "more" and isinstance(old, dict):
        old[one_of(draw, *TEXTS)] = odd_value(draw)
    elif kind == "more" and isinstance(old, list):
        old.append(odd_value(draw))
    elif kind == "nudge" and isinstance(old, (int, float)):
        holder[key] = one_of(draw, old + 1, old - 1, -old, old * 2, old * 1000, old / 2, str(old), [old], bool(old))
    elif kind == "nudge" and isinstance(old, str):
        holder[key] = one_of(draw, old + " ", old.upper(), old[:-1], f"../{old}", f"/{old}", f"{old}\x1b[2J", [old])
    else:
        holder[key] = odd_value(draw)
    return value


# Bytes and text.


WHOLES = (
    b"",
    b"\n",
    b"\0" * 64,
    b"<!DOCTYPE html><html><body>404</body></html>\n",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
    b"\x89PNG\r\n\x1a\n",
    b"PK\x03\x04",
    b"\x1f\x8b\x08\x00",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n",
    b"\xff\xfe{\x00}\x00",
    b"\x80\x02}q\x00.",
    b"[" * 100_000,
    b'{"a":' * 50_000,
)
"""Content that replaces a whole file: nothing, a web page, a pointer, another format, many brackets."""


def spoil_bytes(draw: Draw, content: bytes) -> bytes:
    """Remove, change, double or insert one piece of some bytes."""
    size = len(content)
    # Formats are recognised by their first and last bytes.
    at = one_of(
        draw, number_below(draw, min(size, 64)), number_below(draw, size), max(0, size - 1 - number_below(draw, 64))
    )
    at = min(at, size)
    length = one_of(draw, 1, 2, 4, 8, 100, 5000)
    kind = one_of(draw, "cut", "flip", "flip", "flip", "numbers", "random", "remove", "double", "insert", "whole")
    if kind == "cut":
        return content[:at]
    if kind == "whole":
        return one_of(draw, *WHOLES)
    if kind == "remove":
        return content[:at] + content[at + length :]
    if kind == "double":
        return content[: at + length] + content[at:]
    if kind == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
    if kind == "numbers":
        return (
            content[:at]
            + one_of(draw, b"\0", b"\xff", b"\x7f", b"\x80") * min(length, 8)
            + content[at + min(length, 8) :]
        )
    if kind == "random":
        return content[:at] + draw(st.binary(min_size=4, max_size=16)) + content[at + 16 :]
    changed = bytearray(content)
    for _ in range(one_of(draw, 1, 1, 3, 20)):
        if changed:
            changed[number_below(draw, size) if _ else min(at, size - 1)] ^= 1 << number_below(draw, 8)
    return bytes(changed)


def spoil_text(draw: Draw, text: str) -> str:
    """Change one number, word or line of a text."""
    kind = one_of(draw, "number", "number", "word", "line", "odd", "ends")
    if kind == "ends":
        return one_of(draw, f"\ufeff{text}", text.replace("\n", "\r\n"), text.replace("\n", "\r"), text.rstrip("\n"))
    if kind == "line":
        lines = text.splitlines(keepends=True) or [""]
        at = number_below(draw, len(lines))
        several = one_of(draw, [], [lines[at]] * 2, [lines[at][: len(lines[at]) // 2]], [one_of(draw, *lines)])
        return "".join([*lines[:at], *several, *lines[at + 1 :]])
    pattern = {"number": r"-?\d+(?:\.\d+)?", "word": r"[\w.-]+", "odd": r"[^\w\s]"}[kind]
    found = list(re.finditer(pattern, text))
    if not found:
        return text + one_of(draw, *TEXTS)
    match = found[number_below(draw, len(found))]
    if kind == "number":
        old = match[0]
        new = one_of(draw, *map(str, NUMBERS), f"-{old}", f"{old}0", f"{old}.5", "", "x", f"{old} ", "٣", "1_0")
    elif kind == "word":
        new = one_of(draw, *TEXTS, one_of(draw, *found)[0])
    else:
        new = one_of(draw, "", match[0] * 2, "\\", '"', "<", ",")
    return text[: match.start()] + new + text[match.end() :]


# Tensors.


TYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64)


def spoil_tensors(draw: Draw, state: dict[str, Any]) -> str:
    """Change one tensor or name of a state dict and return a description."""
    names = sorted(state)
    name = one_of(draw, *names)
    tensor = state[name]
    kind = one_of(draw, "gone", "renamed", "type", "shape", "number", "other", "more", "empty", "prefix")
    if kind == "gone":
        del state[name]
    elif kind == "renamed":
        state[one_of(draw, "", f"{name}.x", f"module.{name}", "\x1b[31m", name.upper())] = state.pop(name)
    elif kind == "type":
        state[name] = tensor.to(one_of(draw, *TYPES))
    elif kind == "shape":
        long = tensor if tensor.ndim else tensor[None]
        axes = (long[None], long.reshape(-1), long[:1], torch.cat([long, long]), long.movedim(0, -1))
        state[name] = one_of(draw, *axes).contiguous()
    elif kind == "number" and tensor.is_floating_point() and tensor.numel():
        state[name] = tensor.clone()
        value = one_of(draw, float("nan"), float("inf"), 1e38, -1e38, 0.0, 1e-40)
        if one_of(draw, True, False):
            state[name].fill_(value)
        else:
            state[name].view(-1)[number_below(draw, tensor.numel())] = value
    elif kind == "other":
        state[name] = state[one_of(draw, *names)].clone()
    elif kind == "empty":
        state[name] = torch.zeros(one_of(draw, (0,), (0, 3), ()))
    elif kind == "prefix":
        prefix = one_of(draw, "module.", "_orig_mod.", "model.", "x")
        changed = {f"{prefix}{key}": value for key, value in state.items()}
        state.clear()
        state.update(changed)
    else:
        state[one_of(draw, "extra", "a" * 300, "é\u202e")] = torch.zeros(3)
    return f"{kind} of {name}"


# Files and folders.


def odd_image(draw: Draw) -> bytes:
    """Draw an image of an unexpected size or mode, or one whose header states a wrong size."""
    kind = one_of(draw, "size", "size", "mode", "header", "flat")
    if kind == "header":
        return _stated_size(
            one_of(draw, (65535, 65535), (2**31 - 1, 2**31 - 1), (0, 5), (30000, 30000), (1, 2**31 - 1))
        )
    stream = io.BytesIO()
    if kind == "flat":
        Image.new("1", one_of(draw, (6000, 6000), (30000, 2000), (1, 60000)), 1).save(stream, "PNG")
        return stream.getvalue()
    size = one_of(draw, (1, 1), (3, 5), (64, 47), (640, 480), (65, 48)) if kind == "size" else (64, 48)
    mode = one_of(draw, "L", "RGB", "RGBA", "P", "1", "I;16", "LA", "I", "F", "CMYK") if kind == "mode" else "L"
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    pixels = np.arange(size[0] * size[1]).reshape(size[1], size[0]) % 300
    image = Image.fromarray(pixels.astype(deep.get(mode, np.uint8)))
    image = image if mode in deep else image.convert(mode)
    image.save(stream, "TIFF" if mode in ("F", "CMYK", "I") else one_of(draw, "PNG", "TIFF"))
    return stream.getvalue()


def _stated_size(size: tuple[int, int]) -> bytes:
    """Return a PNG whose header states a size that its data do not have."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


IMAGES = (".png", ".jpg", ".jpeg")


def spoil_content(draw: Draw, name: str, content: bytes) -> bytes:
    """Change the content of a file, either in its format, given by its name, or byte by byte."""
    suffix = Path(name).suffix
    if one_of(draw, *[False] * 3, True):
        return spoil_bytes(draw, content)
    try:
        if suffix == ".json":
            return to_json(spoil_value(draw, json.loads(content)))
        if suffix == ".jsonl":
            return b"\n".join(
                to_json(record) for record in spoil_value(draw, [json.loads(line) for line in content.splitlines()])
            )
        if suffix == ".p":
            return pickle.dumps(spoil_value(draw, pickle.loads(content, encoding="latin1")), 2)
        if suffix in IMAGES:
            return odd_image(draw)
        if suffix in (".xml", ".txt", ".csv", ".yaml"):
            return spoil_text(draw, content.decode()).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError, pickle.UnpicklingError, EOFError, LookupError, AttributeError):
        pass  # already unreadable from an earlier change
    return spoil_bytes(draw, content)


def to_json(value: Any) -> bytes:
    """Encode JSON in UTF-8, with NaN and lone surrogates as Python writes them."""
    return json.dumps(value).encode()


def spoil_folder(draw: Draw, folder: Path) -> str:
    """Change one file or name below a folder and return a description."""
    # There are few annotation files beside many frames, so draw the suffix first.
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing is left"
    suffix = one_of(draw, *sorted({path.suffix for path in files}))
    path = one_of(draw, *[path for path in files if path.suffix == suffix])
    kind = one_of(draw, *["content"] * 8, "place", "name", "exchange")
    name = path.relative_to(folder)
    if kind == "content":
        path.write_bytes(spoil_content(draw, path.name, path.read_bytes()))
        return f"content of {name}"
    if kind == "exchange":
        other = one_of(draw, *files)
        shutil.copyfile(other, folder / ".spare")
        if path != other:
            shutil.copyfile(path, other)
        os.replace(folder / ".spare", path)
        return f"{name} and {other.relative_to(folder)} exchanged"
    if kind == "place":
        return f"{name}: {spoil_place(draw, path)}"
    return f"{name}: {spoil_name(draw, path if path.parent == folder else one_of(draw, path, path, path.parent))}"


def spoil_place(draw: Draw, path: Path) -> str:
    """Replace a file by something that is not a regular file."""
    kind = one_of(draw, "nothing", "folder", "pipe", "link to itself", "link to nothing", "link outside", "zeros")
    path.unlink()
    makers: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to itself": lambda: path.symlink_to(path.name),
        "link to nothing": lambda: path.symlink_to("absent"),
        "link outside": lambda: path.symlink_to("/etc/hostname"),
        "zeros": lambda: path.symlink_to("/dev/zero"),
    }
    makers[kind]()
    return kind


def spoil_name(draw: Draw, path: Path) -> str:
    """Rename a file or folder, or copy a file under another name."""
    stem, suffix = path.stem, path.suffix
    odd: list[bytes | str] = [f"{stem}.bak", f"{stem}{suffix.upper()}", f"{stem}é{suffix}", f"{stem}\x1b[31m{suffix}"]
    odd += [b"\xff" + os.fsencode(suffix), f"1{stem}{suffix}", f"{stem}\n{suffix}", f"-{stem}{suffix}", f" {suffix}"]
    name = os.fsdecode(one_of(draw, *odd))
    if one_of(draw, True, False) and path.is_file():
        shutil.copyfile(path, path.with_name(name))
        return f"copied to {name!r}"
    path.rename(path.with_name(name))
    return f"renamed {path.name} to {name!r}"
