"""Recognise weight files by their content, and name other files in the error message."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

from refervos.errors import CheckpointError
from refervos.files.plain_text import decode_text, parse_json

LONGEST_SETTINGS = 50 * 2**20
"""Maximum size of a configuration in bytes; the largest index of weight files has a few hundred thousand."""

LARGEST_STRUCTURE = 100 * 2**20
"""Maximum size in bytes of the names and shapes in a torch file."""

_TORCH_STRUCTURE = "data.pkl"

_SIGNATURES = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file; run 'git lfs pull' in its repository",
    b"\x1f\x8b": "it is a gzip archive; unpack it first",
    b"BZh": "it is a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "it is an xz archive; unpack it first",
    b"7z\xbc\xaf": "it is a 7-Zip archive; unpack it first",
    b"Rar!": "it is a RAR archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "it is a Zstandard archive; unpack it first",
    b"\x89HDF": "it is an HDF5 file, the format of TensorFlow; save the weights as safetensors",
    b"\x93NUMPY": "it is a NumPy array; save the weights as safetensors",
    b"GGUF": "it is a GGUF file; use the model's safetensors",
}
"""First bytes of files often mistaken for weights, with a remedy for each."""

_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")

_RESAVE = "save only the weights, with torch.save(model.state_dict(), FILE) or as safetensors"


def is_torch_file(path: Path) -> bool:
    """Return whether a file starts like one of ``torch.save`` of any version: a zip archive, pickle or tar archive."""
    with path.open("rb") as file:
        head = file.read(512)
    if _begins_as_safetensors(head):  # its length field may look like any of these
        return False
    return head[:2] == b"PK" or head[:1] == b"\x80" or head[257:262] == b"ustar"


def _begins_as_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < LARGEST_STRUCTURE


def check_archive(path: Path) -> None:
    """Check that a zip archive is a torch file whose parts take no more memory than the file's size.

    Args:
        path: An existing file; other formats are not checked.

    Raises:
        CheckpointError: When the archive is damaged, not from torch, or compressed.
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
        raise CheckpointError(
            f"{path} cannot be read as weights: it is a zip archive without torch weights; unpack it."
        )
    if any("/code/" in part.filename for part in parts):
        raise CheckpointError(f"{path} cannot be read as weights: it is a TorchScript program; {_RESAVE}.")
    compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if compressed or sum(part.file_size for part in parts) > path.stat().st_size:
        raise CheckpointError(
            f"{path} cannot be read as weights: it was repacked with compression, which torch cannot read; {_RESAVE}."
        )
    for part in parts:
        if part.filename.endswith(f"/{_TORCH_STRUCTURE}") and part.file_size > LARGEST_STRUCTURE:
            raise CheckpointError(
                f"{path} cannot be read as weights: its tensor names and shapes take {part.file_size} bytes, more than "
                f"{LARGEST_STRUCTURE}; {_RESAVE}."
            )


def unreadable_error(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that cannot be read as weights.

    The message of torch is not repeated, as it advises running the code in the file.

    Args:
        path: The existing file.
        error: The error of torch or safetensors.
    """
    reason = _file_format(path) or _torch_reason(str(error))
    return CheckpointError(f"{path} cannot be read as weights: {reason}.")


def _file_format(path: Path) -> str | None:
    """Describe a file by its first bytes and its size; None when they are inconclusive."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not size:
        return "it is empty; download or copy it again"
    for signature, description in _SIGNATURES.items():
        if head.startswith(signature):
            return description
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_PAGE):
        return "it is a web page; download the file itself (on the hub, the URL with 'resolve' instead of 'blob')"
    if head[:2] == b"PK":
        try:
            return None if zipfile.is_zipfile(path) else "it is truncated; download or copy it again"
        except zipfile.BadZipFile:  # its directory is damaged
            return None
    if _begins_as_safetensors(head):
        return _safetensors_reason(path, size)
    if re.fullmatch(rb"[\x09\x0a\x0d\x20-\x7e]*", head):
        return "it is a text file; give a weight file"
    return None


def _safetensors_reason(path: Path, size: int) -> str:
    """Describe the fault of an unreadable safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    if len(header) < length:
        return "it is truncated; download or copy it again"
    try:
        tensors = parse_json(header.decode(), "its header", CheckpointError)
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        kinds = sorted({str(entry["dtype"]) for name, entry in tensors.items() if name != "__metadata__"})
    except (CheckpointError, UnicodeDecodeError, AttributeError, KeyError, TypeError, IndexError):
        return "its header is damaged; download or copy it again"
    if all(isinstance(end, int) for end in ends) and max(ends, default=0) + 8 + length > size:
        return "it is truncated; download or copy it again"
    return f"it is damaged, or has a data type that this version of torch does not support ({', '.join(kinds)[:80]})"


def _torch_reason(error: str) -> str:
    """Describe the fault of a torch file, from torch's error message."""
    named = re.search(r"(?:GLOBAL|[Uu]nsupported class|instantiate (?:unsupported )?class) ([A-Za-z_][\w.]*)", error)
    if named:
        name = named.group(1)[:80]
        return f"it contains an object named {name} beside the weights, which could run code; {_RESAVE}"
    if "weights_only" in error or "WeightsUnpickler" in error:
        return f"it contains more than tensors and plain values; {_RESAVE}"
    if "PytorchStreamReader" in error or "unexpected EOF" in error or "Ran out of input" in error:
        return "it is truncated or damaged; download or copy it again"
    return "it is damaged or not a weight file"


def read_settings(path: Path) -> Any:
    """Read an untrusted configuration.

    Args:
        path: A JSON file.

    Returns:
        Its content.

    Raises:
        CheckpointError: When it is not a regular file, too large, or not valid JSON in UTF-8.
        OSError: When it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file.")  # reading a pipe would block forever
    if path.stat().st_size > LONGEST_SETTINGS:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes; a configuration may have at most {LONGEST_SETTINGS}."
        )
    try:
        return parse_json(decode_text(path.read_bytes()), str(path), CheckpointError)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: it is not UTF-8 text.") from error
