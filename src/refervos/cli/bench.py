"""``refervos bench``: heavy modules are imported only when the command runs, so that ``refervos --help`` is fast."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from refervos.cli.options import DeviceOption, OverwriteOption, QuietOption
from refervos.errors import ConfigError


def bench(
    model: Annotated[
        str,
        typer.Argument(
            help="Model folder, Hugging Face id, 'miniature', 'refsam-miniature', or a size with random weights: "
            "tiny, base-plus, large (SAMWISE), vit-b, vit-l, vit-h (RefSAM)."
        ),
    ] = "miniature",
    mode: Annotated[
        str, typer.Option(help="Grouping of frames: clip, online, or both separated by a comma.")
    ] = "clip,online",
    sentences: Annotated[
        str, typer.Option(help="Number of sentences per run, or several separated by commas, such as 1,4,16.")
    ] = "1",
    dtype: Annotated[
        str, typer.Option(help="Precision: float32, bfloat16, float16 (GPU only), or several separated by commas.")
    ] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Also measure each case with torch.compile.")] = False,
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="Also measure the SAM2 of transformers, tracking one object from a click."),
    ] = False,
    size: Annotated[
        int | None, typer.Option(min=64, help="Side of the model's square input in pixels; default the model's own.")
    ] = None,
    frame_size: Annotated[str, typer.Option(help="Width and height of the test frames in pixels.")] = "854x480",
    frames: Annotated[int, typer.Option(min=1, help="Number of measured frames.")] = 24,
    warm_up: Annotated[
        int, typer.Option(min=1, help="Number of frames before the measurement; 16 fill the memory bank.")
    ] = 16,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of CPU threads; default the number that torch chooses.")
    ] = None,
    device: DeviceOption = None,
    stages: Annotated[bool, typer.Option("--stages/--no-stages", help="Measure the time of each stage.")] = True,
    flops: Annotated[
        bool,
        typer.Option("--flops", help="Count floating-point operations and compare their rate with the machine's peak."),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for all measurements.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file for the tables.")] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the speed, time per stage and memory of a model on this machine, each case in a fresh process.

    Example: `refervos bench base-plus --sentences 1,4 --dtype float32,bfloat16 --baseline --out speed.json`
    """
    for path in (out, markdown):
        if path is not None and path.exists() and not overwrite:
            raise ConfigError(f"{path} exists already; give another file or --overwrite.")

    import torch

    from refervos.bench.cases import DTYPES, MODES, Case, check_model, combinations, parse_counts, parse_names
    from refervos.bench.families import preset_names
    from refervos.bench.machine import this_machine
    from refervos.bench.processes import measure_in_processes
    from refervos.bench.report import Report, as_json, as_markdown
    from refervos.files.writing import write_atomically
    from refervos.loading import find_device
    from refervos.progress import Bar

    check_model(model, preset_names())
    template = Case(
        model=model,
        mode="online",
        size=size,
        frame_size=parse_frame_size(frame_size),
        frames=frames,
        warm_up=warm_up,
        threads=threads or torch.get_num_threads(),
        device=str(find_device(device)),
        stages=stages,
        flops=flops,
    )
    cases = combinations(
        template,
        modes=parse_names(mode, "--mode", MODES),
        sentences=parse_counts(sentences, "--sentences"),
        dtypes=parse_names(dtype, "--dtype", DTYPES),
        compiled=compiled,
        baseline=baseline,
    )
    results = []
    with Bar("cases", total=len(cases), show=False if quiet else None) as bar:
        bar.advance(0, cases[0].label)
        for number, result in enumerate(measure_in_processes(cases), 1):
            results.append(result)
            bar.advance(1, cases[number].label if number < len(cases) else "done")
    report = Report(f"refervos {shlex.join(sys.argv[1:])}", this_machine(template.device), results)
    typer.echo(as_markdown(report))
    if out is not None:
        write_atomically(out, as_json(report))
    if markdown is not None:
        write_atomically(markdown, f"{as_markdown(report)}\n".encode())


def parse_frame_size(text: str) -> tuple[int, int]:
    """Parse ``WIDTHxHEIGHT``.

    Args:
        text: Text such as ``854x480``.

    Returns:
        Height and width.

    Raises:
        ConfigError: When the text has another form, or a side has less than 16 pixels.
    """
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= 16):
        raise ConfigError(f"--frame-size is {text!r}; give width and height of at least 16 pixels, such as 854x480.")
    return int(height), int(width)
