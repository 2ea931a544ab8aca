"""Options shared by several commands."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Model folder, SAM2 checkpoint, Hugging Face id, or a name that `refervos models` lists."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Device, such as cpu, cuda, cuda:1 or mps; default a GPU if available.")
]
DtypeOption = Annotated[str, typer.Option(help="Floating-point precision: float32, bfloat16 or float16.")]
ClipOption = Annotated[int | None, typer.Option(min=1, help="Frames processed as one clip; default the model's.")]
HindsightOption = Annotated[
    bool,
    typer.Option(
        "--hindsight", help="Decide at the end of each video which object is meant, and answer from its first frame on."
    ),
]
OnlineOption = Annotated[
    bool, typer.Option("--online", help="Segment each frame as it comes, without later frames; same as --clip 1.")
]
ProtocolOption = Annotated[
    str | None, typer.Option(help="Set to 'published' to reproduce the released SAMWISE code exactly.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a field of the model's configuration, such as cme=false; repeat for several.",
        show_default=False,
    ),
]
AllowOutsideOption = Annotated[
    bool,
    typer.Option("--allow-outside", help="Also read files outside PATH that the annotations refer to."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]


class Precision(StrEnum):
    """Floating-point precision of the model."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
