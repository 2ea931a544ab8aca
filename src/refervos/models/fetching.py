"""Fetch a model by name: download, check, convert and keep it, one process at a time."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

from refervos.checkpoints.hub import HubOptions
from refervos.checkpoints.hub import fetch as fetch_repository
from refervos.checkpoints.weights import as_checkpoint_error
from refervos.conversion import DEFAULT_TOKENIZER
from refervos.errors import CheckpointError
from refervos.models import drive
from refervos.models.registry import MODELS, ByHand, DriveFile, HubRepository, NamedModel, named_model
from refervos.models.store import (
    HUB_FILES,
    Busy,
    cache_folder,
    clear_leftovers,
    discard_download,
    find_on_disk,
    locked,
    read_record,
    record_file,
    write_record,
)
from refervos.sam2.config import SAM2_PRESETS
from refervos.samwise.checkpoints import load_official
from refervos.text.tokenizer import Tokenizer

_PAUSE = 0.5
"""Seconds between two looks at a model that another process is fetching."""


def fetch_model(
    name: str,
    *,
    file: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] = DEFAULT_TOKENIZER,
    quiet: bool = False,
) -> Path:
    """Return the folder of a model known by name; it is downloaded and converted if it is not on disk.

    A second process that needs the same model waits for the first one. A download or conversion that was interrupted,
    even by a kill, is continued or repeated by the next call.

    Args:
        name: Name of the model.
        file: Checkpoint that was downloaded by hand, instead of a download; it is kept.
        tokenizer: Folder or hub id of RoBERTa's tokenizer, for SAMWISE.
        quiet: Show no progress bar and no notes on standard error.

    Returns:
        The folder, for ``load``.

    Raises:
        CheckpointError: When the name is unknown, or the model cannot be downloaded, differs from its first download,
            is another model, or cannot be written.
        MissingDependencyError: When a package for the download is not installed.
    """
    model = named_model(name)
    if isinstance(model.origin, ByHand):
        raise CheckpointError(f"{name} cannot be fetched by a program: {model.origin.advice}.")
    if file is not None and not isinstance(model.origin, DriveFile):
        raise CheckpointError(f"{name} is not made from a single file; give its folder to --model instead of --from.")
    found = find_on_disk(model)
    if found is not None and file is None:
        clear_leftovers(model)
        return found
    waiting = False
    while True:
        try:
            with as_checkpoint_error(name), locked(model) as folder:
                found = find_on_disk(model)
                if isinstance(model.origin, HubRepository):
                    return found or _fetch_snapshot(model, model.origin, quiet)
                assert isinstance(model.origin, DriveFile)
                return _fetch_official(model, model.origin, folder, found, file, tokenizer, quiet)
        except Busy:
            if not waiting:
                _say(f"another process is fetching {name}; waiting for it", quiet)
            waiting = True
            time.sleep(_PAUSE)


def _say(sentence: str, quiet: bool) -> None:
    if not quiet:
        print(sentence, file=sys.stderr)


def _fetch_snapshot(model: NamedModel, origin: HubRepository, quiet: bool) -> Path:
    """Download a repository of the hub into the hub's own cache, in the revision of the first download."""
    revision = read_record(model).get("revision")
    _say(f"fetching {model.name} from {origin}", quiet)
    folder = fetch_repository(origin.id, HUB_FILES, "try again later", HubOptions(revision=revision))
    write_record(model, revision=folder.name)
    _say(f"{model.name} is in {folder}; its revision {folder.name} is pinned in {record_file(model)}", quiet)
    return folder


def _fetch_official(
    model: NamedModel,
    origin: DriveFile,
    folder: Path,
    found: Path | None,
    file: str | os.PathLike[str] | None,
    tokenizer: str | os.PathLike[str],
    quiet: bool,
) -> Path:
    """Convert an official checkpoint that is downloaded or given, unless the model is on disk."""
    if found is not None and file is None:
        return found
    if found is not None and file is not None:
        _check_digest(model, Path(file))
        return found
    _refuse_offline(model, file)
    reader = Tokenizer.from_pretrained(tokenizer)  # the small download first, so that its failure costs no time
    if file is not None:
        checkpoint = Path(file)
    else:
        checkpoint = folder / f"{model.name}.pth"
        _say(f"fetching {model.name} ({model.size} parameters) from {origin}", quiet)
        drive.download(model, origin, checkpoint, show_progress=False if quiet else None)
    target = cache_folder() / model.name
    try:
        digest = _check_digest(model, checkpoint)
        _check_whole(checkpoint)
        loaded = load_official(checkpoint, reader)
        expected = SAM2_PRESETS[origin.size]
        if loaded.config.sam2.stage_widths != expected.stage_widths:
            raise CheckpointError(
                f"{checkpoint} is a SAMWISE of another size than {model.name}, which is {origin.size}; give the file "
                f"of {origin}."
            )
    except CheckpointError:
        if file is None:
            checkpoint.unlink(missing_ok=True)  # it would be refused again
        raise
    try:
        write_record(model, sha256=digest, bytes=checkpoint.stat().st_size)
        details = replace(loaded.card, license=model.licence.lower())
        loaded.save_pretrained(target, overwrite=True, card=details)  # of a removal that was killed
    except Exception as error:  # safetensors has its own errors
        if "No space left" in str(error):
            raise drive.full_disk(model, target) from error
        raise
    discard_download(model)
    _say(f"{model.name} is in {target}; its checksum, sha256 {digest}, is pinned in {record_file(model)}", quiet)
    return target


def _refuse_offline(model: NamedModel, file: object) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and file is None:
        raise CheckpointError(
            f"{model.name} is not on disk, and HF_HUB_OFFLINE forbids to fetch it; unset HF_HUB_OFFLINE, or download "
            f"{model.origin} elsewhere and run 'refervos models fetch {model.name} --from FILE'."
        )


def _check_digest(model: NamedModel, checkpoint: Path) -> str:
    """Compute a file's SHA-256 and compare it with the first download of this model and of others.

    Raises:
        CheckpointError: When it differs from this model's, or is that of another model.
    """
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} does not exist or is not a file; give the checkpoint of {model.name}.")
    with checkpoint.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    pinned = read_record(model).get("sha256")
    other = next((each.name for each in MODELS if each != model and read_record(each).get("sha256") == digest), None)
    if other is not None and pinned != digest:
        raise CheckpointError(f"{checkpoint} is the checkpoint of {other}, not of {model.name}; give the right file.")
    if pinned is not None and pinned != digest:
        raise CheckpointError(
            f"{checkpoint} differs from the file of {model.name} that was fetched first: its sha256 is {digest}, "
            f"pinned is {pinned}. It may have been replaced or damaged; use it only if its authors announce a new one, "
            f"and then run 'refervos models remove {model.name} --forget' first."
        )
    return digest


def _check_whole(checkpoint: Path) -> None:
    """Compare the parts of a torch file with the checksums inside it; no other checksum is published.

    Raises:
        CheckpointError: When a part is damaged.
    """
    if not zipfile.is_zipfile(checkpoint):
        return  # an older format, or no weights: reading it says which
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint} is a damaged archive ({error}); download it again.") from error
    if damaged is not None:
        raise CheckpointError(f"{checkpoint} is damaged: its part {damaged} has another checksum; download it again.")
