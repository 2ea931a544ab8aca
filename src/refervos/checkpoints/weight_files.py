"""What a file is that should hold weights: known by its content, and told where it is something else."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

from refervos.errors import CheckpointError
from refervos.files.plain_text import decode_text, parse_json

LONGEST_SETTINGS = 50 * 2**20
"""Bytes of a configuration that are read; the largest index of weight files has a few hundred thousand."""

LARGEST_STRUCTURE = 100 * 2**20
"""Bytes of names and shapes in a torch file that are read."""

_TORCH_STRUCTURE = "data.pkl"

_BEGINNINGS = {
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file; run 'git lfs pull' where it is from",
    b"\x1f\x8b": "it is a gzip archive; unpack it first",
    b"BZh": "it is a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "it is an xz archive; unpack it first",
    b"7z\xbc\xaf": "it is a 7-Zip archive; unpack it first",
    b"Rar!": "it is a RAR archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "it is a Zstandard archive; unpack it first",
    b"\x89HDF": "it is an HDF5 file, as TensorFlow writes them; save the weights as safetensors",
    b"\x93NUMPY": "it is a NumPy array; save the weights as safetensors",
    b"GGUF": "it is a GGUF file; take the model's safetensors",
}
"""How files begin that people take for weights, and what to do about it."""

_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")

_RESAVE = "save the weights alone where the file was made: torch.save(model.state_dict(), FILE), or as safetensors"


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as those that ``torch.save`` writes, of any age: a zip archive, a pickle, a tar archive."""
    with path.open("rb") as file:
        head = file.read(512)
    if _begins_as_safetensors(head):  # whose length may look like any of these
        return False
    return head[:2] == b"PK" or head[:1] == b"\x80" or head[257:262] == b"ustar"


def _begins_as_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < LARGEST_STRUCTURE


def check_archive(path: Path) -> None:
    """Check that a torch file, where it is a zip archive, says nothing of it takes more memory than the file is large.

    Args:
        path: An existing file of any kind.

    Raises:
        CheckpointError: When the archive is damaged, is none of torch's, or its parts are compressed.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, UnicodeDecodeError) as error:
        raise unreadable_error(path, error) from error
    if not any(part.filename.endswith(f"/{_TORCH_STRUCTURE}") for part in parts):
        raise CheckpointError(f"{path} cannot be read as weights: it is a zip archive of something else; unpack it.")
    if any("/code/" in part.filename for part in parts):
        raise CheckpointError(f"{path} cannot be read as weights: it is a TorchScript program; {_RESAVE}.")
    compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if compressed or sum(part.file_size for part in parts) > path.stat().st_size:
        raise CheckpointError(
            f"{path} cannot be read as weights: it was packed anew, which torch cannot read; {_RESAVE}."
        )
    for part in parts:
        if part.filename.endswith(f"/{_TORCH_STRUCTURE}") and part.file_size > LARGEST_STRUCTURE:
            raise CheckpointError(
                f"{path} cannot be read as weights: its structure alone has {part.file_size} bytes, and at most "
                f"{LARGEST_STRUCTURE} are read; {_RESAVE}."
            )


def unreadable_error(path: Path, error: Exception) -> CheckpointError:
    """Say what a file is that cannot be read as weights.

    What torch says itself is not repeated: it advises to execute what is in the file.

    Args:
        path: The file, which exists.
        error: What a library said.
    """
    reason = _what_it_is(path) or _what_is_in_it(str(error))
    return CheckpointError(f"{path} cannot be read as weights: {reason}.")


def _what_it_is(path: Path) -> str | None:
    """What a file is by its beginning and length, None where that says nothing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not size:
        return "it is empty; download or copy it again"
    for beginning, told in _BEGINNINGS.items():
        if head.startswith(beginning):
            return told
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_PAGE):
        return "it is a web page; download the file itself (on the hub, the address with 'resolve' and not 'blob')"
    if head[:2] == b"PK":
        try:
            return None if zipfile.is_zipfile(path) else "it is cut off; download or copy it again"
        except zipfile.BadZipFile:  # what its end says is wrong
            return None
    if _begins_as_safetensors(head):
        return _of_safetensors(path, size)
    if re.fullmatch(rb"[\x09\x0a\x0d\x20-\x7e]*", head):
        return "it is text; give the file of weights"
    return None


def _of_safetensors(path: Path, size: int) -> str:
    """What is wrong with a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    if len(header) < length:
        return "it is cut off; download or copy it again"
    try:
        tensors = parse_json(header.decode(), "its header", CheckpointError)
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        kinds = sorted({str(entry["dtype"]) for name, entry in tensors.items() if name != "__metadata__"})
    except (CheckpointError, UnicodeDecodeError, AttributeError, KeyError, TypeError, IndexError):
        return "its header is damaged; download or copy it again"
    if all(isinstance(end, int) for end in ends) and max(ends, default=0) + 8 + length > size:
        return "it is cut off; download or copy it again"
    return f"it is damaged, or holds numbers of a type that this torch does not know ({', '.join(kinds)[:80]})"


def _what_is_in_it(error: str) -> str:
    """What torch found in a file, from what it said."""
    named = re.search(r"(?:GLOBAL|[Uu]nsupported class|instantiate (?:unsupported )?class) ([A-Za-z_][\w.]*)", error)
    if named:
        return (
            f"it holds an object named {named.group(1)[:80]} beside the weights, and to load objects is to run what "
            f"they say; {_RESAVE}"
        )
    if "weights_only" in error or "WeightsUnpickler" in error:
        return f"it holds something else than tensors and plain values; {_RESAVE}"
    if "PytorchStreamReader" in error or "unexpected EOF" in error or "Ran out of input" in error:
        return "it is cut off or damaged; download or copy it again"
    return "it is damaged or no file of weights"


def read_settings(path: Path) -> Any:
    """Read a configuration of which nobody knows who wrote it.

    Args:
        path: A JSON file.

    Returns:
        What it holds.

    Raises:
        CheckpointError: When it is no ordinary file, too long, no text, or not valid JSON.
        OSError: When it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file that can be read.")  # a pipe would be waited for without end
    if path.stat().st_size > LONGEST_SETTINGS:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes; of a configuration at most {LONGEST_SETTINGS} are read."
        )
    try:
        return parse_json(decode_text(path.read_bytes()), str(path), CheckpointError)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: it is no text in UTF-8.") from error
