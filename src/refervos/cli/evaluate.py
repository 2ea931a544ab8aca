"""``refervos eval``, ``score``, ``submit`` and ``compare``; heavy modules are imported only when one runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refervos.cli.diagnose import parse_mode, parse_settings
from refervos.cli.options import (
    AllowOutsideOption,
    ClipOption,
    DeviceOption,
    DtypeOption,
    HindsightOption,
    OnlineOption,
    OverwriteOption,
    ProtocolOption,
    QuietOption,
    SettingsOption,
)
from refervos.errors import ConfigError
from refervos.safe_text import printable

if TYPE_CHECKING:
    from refervos.evaluation.conversation_scores import Similarity
    from refervos.evaluation.datasets import Part
    from refervos.evaluation.report import Evaluation

DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="Name of the data set: mevis, ref-youtube-vos, ref-davis17, refcoco ... or worlds."
    ),
]
PathArgument = Annotated[
    Path | None,
    typer.Argument(metavar="PATH", help="Folder of the data set; not needed for worlds.", show_default=False),
]
SplitOption = Annotated[str | None, typer.Option(help="Split of the data set; default the one commonly evaluated.")]
VideosOption = Annotated[
    int | None, typer.Option("--count", min=1, help="Number of videos, from the first; default all.")
]


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Model folder, Hugging Face id, or a name that `refervos models` lists.")
    ],
    dataset: DatasetArgument,
    path: PathArgument = None,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for masks and results; an interrupted run continues there.")
    ],
    split: SplitOption = None,
    count: VideosOption = None,
    clip: ClipOption = None,
    online: OnlineOption = False,
    hindsight: HindsightOption = False,
    protocol: ProtocolOption = None,
    settings: SettingsOption = None,
    together: Annotated[int, typer.Option(min=1, help="Expressions segmented at once; more need more memory.")] = 8,
    processes: Annotated[
        int, typer.Option(min=1, help="Number of processes; each loads the model, and they use all GPUs in turn.")
    ] = 1,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    allow_outside: AllowOutsideOption = False,
    quiet: QuietOption = False,
) -> None:
    """Evaluate a model on a benchmark; write masks, scores of every expression, tables and a report.

    Example: `refervos eval samwise-mevis mevis data/mevis --split valid_u --out results/mevis`
    """
    overrides = parse_settings(settings or [])
    if protocol is not None and overrides.setdefault("protocol", protocol) != protocol:
        raise ConfigError("--protocol and --set protocol=... contradict each other; give only one of them.")
    mode = parse_mode(online, clip)

    from refervos.evaluation.datasets import Part
    from refervos.evaluation.evaluate import Request
    from refervos.evaluation.evaluate import evaluate as run
    from refervos.evaluation.report import require_packages

    require_packages()
    request = Request(
        model,
        Part(dataset, path, split, count, allow_outside),
        out,
        mode,
        together,
        device,
        dtype,
        overrides,
        hindsight,
    )
    with _stoppable("the same command continues from here"):
        evaluation = run(request, processes=processes, show_progress=False if quiet else None)
        _report(evaluation, out)


def score(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="Folder of VIDEO/EXPRESSION/FRAME.png, anno_0/VIDEO/FRAME.png or VIDEO/CONVERSATION-TURN/answer.json."
        ),
    ],
    dataset: DatasetArgument,
    path: PathArgument = None,
    *,
    split: SplitOption = None,
    count: VideosOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the tables and the report; default only print the tables."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    similarity: Annotated[
        str, typer.Option(help="For answers in conversations: compare phrases by 'words', or by 'bert' as published.")
    ] = "words",
    captions: Annotated[
        bool, typer.Option("--captions", help="For answers in conversations: also report CIDEr and METEOR.")
    ] = False,
    allow_outside: AllowOutsideOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score the masks of any system as eval does, or its answers in conversations; missing ones score 0.

    Example: `refervos score theirs mevis data/mevis --split valid_u`
    """
    from refervos.evaluation.datasets import Part
    from refervos.evaluation.grounded_answers import holds_answers
    from refervos.evaluation.report import require_packages
    from refervos.evaluation.scoring import score as run

    part = Part(dataset, path, split, count, allow_outside)
    if similarity not in ("words", "bert"):
        raise ConfigError(f"--similarity is {similarity!r}; choose 'words' or 'bert'.")
    if holds_answers(predictions):
        _score_answers(predictions, part, "bert" if similarity == "bert" else "words", captions, quiet, out)
        return
    if out is not None:
        require_packages()
    with _stoppable("nothing was written"):
        _report(run(predictions, part, processes=processes, show_progress=False if quiet else None), out)


def _score_answers(
    predictions: Path, part: Part, similarity: Similarity, captions: bool, quiet: bool, out: Path | None
) -> None:
    """Score answers in conversations, and write the tables if wanted."""
    from refervos.evaluation.conversation_scores import score_conversations

    with _stoppable("nothing was written"):
        summary = score_conversations(
            predictions, part, similarity=similarity, captions=captions, show_progress=False if quiet else None
        )
        typer.echo(printable(summary.markdown()))
        if out is not None:
            typer.echo("")
            for file in summary.write(out):
                typer.echo(f"wrote {file}")


def submit(
    benchmark: Annotated[str, typer.Argument(help="Benchmark with an evaluation server: mevis or ref-youtube-vos.")],
    predictions: Annotated[
        Path, typer.Argument(help="Folder of VIDEO/EXPRESSION/FRAME.png, or a result folder of eval.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.zip", help="Zip file to write.")],
    data: Annotated[Path, typer.Option(help="Folder of the data set, which lists the required masks.")],
    split: Annotated[str, typer.Option(help="Split to submit.")] = "valid",
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check masks and pack them into a zip file for the evaluation server.

    Example: `refervos submit mevis results/mevis mevis.zip --data data/mevis`
    """
    from refervos.evaluation.datasets import Part
    from refervos.evaluation.predictions import Predictions
    from refervos.evaluation.submission import submit as run
    from refervos.evaluation.submission import top_folder

    top_folder(benchmark)
    with _stoppable("nothing was written"):
        part = Part(benchmark, data, split).open()
        masks = Predictions.open(predictions)
        left_out = run(masks, part, out, overwrite=overwrite, show_progress=False if quiet else None)
    if left_out:
        few = printable(", ".join(left_out[:5]))
        typer.echo(f"left out {len(left_out)} folders that are not in {split}: {few}{', ...' * (len(left_out) > 5)}")
    typer.echo(f"wrote {out}: {len(list(part.samples()))} expressions about {len(part.videos)} videos")


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of masks, such as a result folder of eval.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another folder of masks for the same data set.")],
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="Name of the data set; default the one that eval noted in A and B.",
            show_default=False,
        ),
    ] = None,
    path: PathArgument = None,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write: .png for a contact sheet, .mp4 for a video.")
    ],
    split: SplitOption = None,
    expression: Annotated[
        list[str] | None,
        typer.Option(
            help="VIDEO/EXPRESSION to show; repeat for several; default those on which A and B differ most.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Number of expressions; default 6, or 1 in a video.")] = None,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames per second of the video.")] = 10,
    overwrite: OverwriteOption = False,
    allow_outside: AllowOutsideOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw two systems' masks side by side, with the ground truth if it is public.

    Example: `refervos compare results/ours results/theirs --out differences.png`
    """
    from refervos.evaluation import comparison
    from refervos.evaluation.datasets import Part

    show_progress = False if quiet else None
    one, other = comparison.open_sides(a, b)
    part = Part(dataset, path, split) if dataset else comparison.shared_part(one, other)
    opened = replace(part, allow_outside=allow_outside).open() if part else comparison.part_from_masks(one.predictions)
    if out.suffix.lower() not in (".png", ".mp4"):
        raise ConfigError(f"{out} is neither a .png nor an .mp4 file; give one of them.")
    as_video = out.suffix.lower() == ".mp4"
    number = count or (1 if as_video else comparison.SHEET_EXPRESSIONS)
    with _stoppable("nothing was written"):
        samples = comparison.choose_expressions(
            opened, one, other, number, expression or (), show_progress=show_progress
        )
        if not as_video:
            comparison.write_sheet(samples, one, other, out, overwrite=overwrite)
        elif len(samples) > 1:
            raise ConfigError(
                f"a video shows one expression, not {len(samples)}; give a .png file or a single expression."
            )
        else:
            comparison.write_video(
                samples[0], one, other, out, fps=fps, overwrite=overwrite, show_progress=show_progress
            )
    for sample in samples:
        typer.echo(printable(f"{sample.video.id}/{sample.expression_id}: {sample.expression}"))
    typer.echo(f"wrote {out}")


def _report(evaluation: Evaluation, out: Path | None) -> None:
    """Print the tables, and write them and the report if a folder is given."""
    typer.echo(printable(evaluation.summary.markdown()))
    speed = evaluation.summary.masks_per_second
    if speed is not None:
        typer.echo(f"\n{speed:.1f} masks per second, without reading, writing and scoring")
    if out is not None:
        written = evaluation.write(out)
        typer.echo("")
        for file in written:
            typer.echo(f"wrote {file}")


@contextmanager
def _stoppable(advice: str) -> Iterator[None]:
    """End the command with one sentence and exit code 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo(f"refervos: interrupted; {advice}", err=True)
        raise typer.Exit(130) from stopped
