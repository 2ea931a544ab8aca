"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model folder, SAM2 checkpoint, hub id, 'miniature' or 'refsam-miniature'.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; default a GPU when there is one.")]


class Precision(StrEnum):
    """What can be computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
