"""Convert an official checkpoint to a folder for ``refervos.load``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from refervos.checkpoints.card import CardDetails
from refervos.errors import CheckpointError, ConfigError
from refervos.samwise.checkpoints import load_official
from refervos.samwise.model import Samwise
from refervos.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from refervos.videoglamm.config import VideoGlammConfig
    from refervos.videoglamm.model import VideoGlamm

AUTOMATIC = "auto"
"""Default tokenizer of a checkpoint: RoBERTa's for SAMWISE, the one in its folder for VideoGLaMM."""

DEFAULT_TOKENIZER = "FacebookAI/roberta-base"
"""The tokenizer of every released SAMWISE checkpoint."""

VIDEOGLAMM = "https://github.com/mbzuai-oryx/VideoGLaMM"
"""Repository of the released VideoGLaMM, which states the licences."""


def convert(
    checkpoint: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = AUTOMATIC,
    clip: str | os.PathLike[str] | None = None,
    internvideo: str | os.PathLike[str] | None = None,
    sam2: str | os.PathLike[str] | None = None,
    config: VideoGlammConfig | None = None,
    overwrite: bool = False,
) -> Samwise | VideoGlamm:
    """Convert an official checkpoint of SAMWISE or VideoGLaMM.

    Args:
        checkpoint: A SAMWISE ``.pth``; or a VideoGLaMM folder or file, merged or in the layout of peft and DeepSpeed.
        folder: Output folder for ``config.json``, ``model.safetensors`` and the tokenizer's files.
        tokenizer: A folder or hub id, or None to write none; default the checkpoint's own.
        clip: For VideoGLaMM, a folder or hub id of its image encoder; default OpenAI's, from the hub, if the
            checkpoint lacks it.
        internvideo: For VideoGLaMM, InternVideo2's ``.pt``, if the checkpoint lacks it.
        sam2: For VideoGLaMM, a SAM2 checkpoint or hub id, if the checkpoint lacks it.
        config: For VideoGLaMM, its configuration, if not of the published size.
        overwrite: Whether to write to a folder that is not empty.

    Returns:
        The converted model.

    Raises:
        CheckpointError: When the checkpoint is unreadable or does not match, the tokenizer cannot be read, or the
            folder cannot be written.
        ConfigError: When parts of VideoGLaMM are given for a SAMWISE checkpoint.
    """
    target, source = Path(folder), Path(checkpoint)
    if target.is_dir() and any(target.iterdir()) and not overwrite:  # before reading for minutes
        raise CheckpointError(f"{target} is not empty; give a new folder, or allow overwriting.")
    if source.is_dir() or (source.is_file() and _is_videoglamm(source)):
        model: Samwise | VideoGlamm = _videoglamm(source, tokenizer, clip, internvideo, sam2, config)
    else:
        parts = {"clip": clip, "internvideo": internvideo, "sam2": sam2, "config": config}
        given = [name for name, part in parts.items() if part is not None]
        if given:
            raise ConfigError(
                f"{given[0]} applies only to VideoGLaMM, but {source} is not a VideoGLaMM checkpoint; omit it."
            )
        chosen = DEFAULT_TOKENIZER if tokenizer == AUTOMATIC else tokenizer
        model = load_official(source, None if chosen is None else Tokenizer.from_pretrained(chosen))
    model.save_pretrained(target, overwrite=overwrite)
    return model


def _is_videoglamm(file: Path) -> bool:
    from refervos.videoglamm.checkpoints import is_official

    return is_official(file)


def _videoglamm(
    source: Path,
    tokenizer: str | os.PathLike[str] | None,
    clip: str | os.PathLike[str] | None,
    internvideo: str | os.PathLike[str] | None,
    sam2: str | os.PathLike[str] | None,
    config: VideoGlammConfig | None,
) -> VideoGlamm:
    from refervos.videoglamm.checkpoints import CLIP
    from refervos.videoglamm.checkpoints import load_official as load_videoglamm
    from refervos.videoglamm.conversation import ChatTokenizer

    chosen = (source if source.is_dir() else None) if tokenizer == AUTOMATIC else tokenizer
    model = load_videoglamm(
        source,
        clip=Path(clip) if clip is not None else CLIP,
        internvideo=None if internvideo is None else Path(internvideo),
        sam2=None if sam2 is None else Path(sam2),
        tokenizer=None if chosen is None else ChatTokenizer.from_pretrained(chosen),
        config=config,
        dtype=None,
    )
    model.card = CardDetails(license="other", license_name="licences of its parts", license_link=VIDEOGLAMM)
    return model
