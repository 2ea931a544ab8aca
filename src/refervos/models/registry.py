"""Table of the models known by name: plain data, without torch and without network.

Sources of the numbers: README of this project for the bundled models, README of the released SAMWISE code and the paper
(arXiv 2411.17646), README of facebookresearch/sam2, and the VideoGLaMM paper (arXiv 2411.04923, table of MeViS).
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from refervos.errors import CheckpointError

ASSETS = Path(__file__).parents[1] / "assets"
"""Folder of the bundled models."""

REFERRING, TRACKING, CONVERSATION = "referring (sentence)", "tracking (click, box, mask)", "conversation (question)"
"""Tasks, with the prompts that they take."""


@dataclass(frozen=True)
class Bundled:
    """The model is part of the package."""

    def __str__(self) -> str:
        return "in the package"


@dataclass(frozen=True)
class DriveFile:
    """A checkpoint of the released SAMWISE code on Google Drive, to be converted.

    Attributes:
        id: Google Drive's id.
        size: Which size of SAM2 it contains, a name of ``SAM2_PRESETS``; a file of another size is refused.
    """

    id: str
    size: str

    def __str__(self) -> str:
        return f"https://drive.google.com/file/d/{self.id}"


@dataclass(frozen=True)
class HubRepository:
    """A repository of the Hugging Face hub that loads as it is.

    Attributes:
        id: ``owner/name``.
    """

    id: str

    def __str__(self) -> str:
        return f"https://huggingface.co/{self.id}"


@dataclass(frozen=True)
class ByHand:
    """The checkpoint cannot be fetched by a program.

    Attributes:
        advice: How to get it.
    """

    advice: str

    def __str__(self) -> str:
        return "by hand"


Origin = Bundled | DriveFile | HubRepository | ByHand


@dataclass(frozen=True)
class NamedModel:
    """A model known by name.

    Attributes:
        name: The name for ``load`` and ``--model``.
        task: Its task, with the kinds of prompts.
        parameters: Number of parameters in millions.
        licence: SPDX identifier of the weights' licence, or a remark.
        results: Published results, J&F unless stated otherwise.
        source: Where the results are published.
        origin: Where the weights come from.
    """

    name: str
    task: str
    parameters: float
    licence: str
    results: str
    source: str
    origin: Origin

    @property
    def size(self) -> str:
        """Number of parameters as text."""
        if self.parameters >= 1000:
            return f"{self.parameters / 1000:.1f} B"
        return f"{self.parameters:.1f} M"


def _samwise(name: str, results: str, file: str) -> NamedModel:
    return NamedModel(name, REFERRING, 210.8, "Apache-2.0", results, "arXiv 2411.17646", DriveFile(file, "base-plus"))


def _sam2(version: str, size: str, parameters: float, test: str, mose: str, lvos: str) -> NamedModel:
    return NamedModel(
        f"{version}-{size}",
        TRACKING,
        parameters,
        "Apache-2.0",
        f"SA-V test {test}, MOSE val {mose}, LVOS v2 {lvos}",
        "README of facebookresearch/sam2",
        HubRepository(f"facebook/{version}-hiera-{size}"),
    )


MODELS = (
    NamedModel(
        "miniature",
        REFERRING,
        4.7,
        "Apache-2.0",
        "drawn benchmark 65.4",
        "docs/evaluation.md; drawings only",
        Bundled(),
    ),
    NamedModel(
        "refsam-miniature",
        REFERRING,
        3.7,
        "Apache-2.0",
        "drawn benchmark 56.8",
        "docs/evaluation.md; drawings only",
        Bundled(),
    ),
    NamedModel(
        "videoglamm-miniature",
        CONVERSATION,
        6.0,
        "Apache-2.0",
        "drawn conversations: 57 set mIoU",
        "docs/training.md; drawings only",
        Bundled(),
    ),
    _samwise("samwise-mevis", "MeViS valid 49.5, valid_u 57.1", "1Molt2up2bP41ekeczXWQU-LWTskKJOV2"),
    _samwise("samwise-ref-youtube-vos", "Ref-YouTube-VOS 69.2, Ref-DAVIS17 70.6", "17Ei9XU678tCiiV14c-9EB9ZqXVrj4qEw"),
    _samwise(
        "samwise-refcoco",
        "RefCOCO 75.6, RefCOCO+ 65.8, RefCOCOg 66.8 (images, oIoU presumed)",
        "1gRGzARDjIisZ3PnCW77Y9TMM_SbV8aaa",
    ),
    _sam2("sam2", "tiny", 38.9, "75.0", "70.9", "75.3"),
    _sam2("sam2", "small", 46.0, "74.9", "71.5", "76.4"),
    _sam2("sam2", "base-plus", 80.8, "74.7", "72.8", "75.8"),
    _sam2("sam2", "large", 224.4, "76.0", "74.6", "79.8"),
    _sam2("sam2.1", "tiny", 38.9, "76.5", "71.8", "77.3"),
    _sam2("sam2.1", "small", 46.0, "76.6", "73.5", "78.3"),
    _sam2("sam2.1", "base-plus", 80.8, "78.2", "73.7", "78.2"),
    _sam2("sam2.1", "large", 224.4, "79.5", "74.6", "80.6"),
    NamedModel(
        "videoglamm",
        CONVERSATION,
        5500,
        "see its repository",
        "MeViS valid 45.2",
        "arXiv 2411.04923",
        ByHand(
            "its authors share it on SharePoint, which only a browser can open; follow the link in the README of "
            "https://github.com/mbzuai-oryx/VideoGLaMM, run 'refervos convert FOLDER videoglamm' and give that folder"
        ),
    ),
)
"""All models known by name, in the order of ``refervos models``."""

BY_NAME = {model.name: model for model in MODELS}


def bundled_folder(name: str | os.PathLike[str]) -> Path | None:
    """Return the folder of a bundled model; None for other names."""
    model = BY_NAME.get(str(name))
    return ASSETS / model.name if model is not None and isinstance(model.origin, Bundled) else None


def named_model(name: str) -> NamedModel:
    """Return the entry of a name.

    Raises:
        CheckpointError: When there is no such name; similar ones are suggested.
    """
    if name not in BY_NAME:
        raise CheckpointError(f"there is no model named {name}{suggestion(name)}; 'refervos models' lists the names.")
    return BY_NAME[name]


def suggestion(name: str) -> str:
    """Return ", did you mean NAME?" for a misspelt name, or an empty string."""
    close = difflib.get_close_matches(name, BY_NAME, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
