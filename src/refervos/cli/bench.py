"""``refervos bench``: nothing heavy is imported before the command runs, so that ``refervos --help`` is quick."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from refervos.errors import ConfigError


def bench(
    model: Annotated[
        str,
        typer.Argument(
            help="Model folder, hub id, 'miniature', 'refsam-miniature', or a size with random weights: "
            "tiny, base-plus, large (SAMWISE), vit-b, vit-l, vit-h (RefSAM)."
        ),
    ] = "miniature",
    mode: Annotated[str, typer.Option(help="clip, online, or both with a comma.")] = "clip,online",
    sentences: Annotated[str, typer.Option(help="How many at once, such as 1,4,16.")] = "1",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 (GPU), or several with commas.")] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="Each case a second time, with torch.compile.")] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also transformers' SAM2 following one object from a click.")
    ] = False,
    size: Annotated[int | None, typer.Option(min=64, help="Side of the model's image; default the model's.")] = None,
    frame_size: Annotated[str, typer.Option(help="Width and height of the frames.")] = "854x480",
    frames: Annotated[int, typer.Option(min=1, help="Frames to measure.")] = 24,
    warm_up: Annotated[int, typer.Option(min=1, help="Frames before that; 16 fill the memory.")] = 16,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads; default those that torch would take.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; default a GPU when there is one.")
    ] = None,
    stages: Annotated[bool, typer.Option("--stages/--no-stages", help="Whether stages are timed.")] = True,
    flops: Annotated[bool, typer.Option("--flops", help="Count operations and compare with the peak.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for everything measured.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="File for the tables.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Tell how fast a model is here, where its time goes and what memory it takes; each case in a fresh process.

    Example: `refervos bench base-plus --sentences 1,4 --dtype float32,bfloat16 --baseline --out speed.json`
    """
    for path in (out, markdown):
        if path is not None and path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; give another file or --overwrite.")

    import torch

    from refervos.bench.cases import DTYPES, MODES, Case, chosen, combinations, counts, known_model
    from refervos.bench.families import preset_names
    from refervos.bench.machine import this_machine
    from refervos.bench.processes import measured_apart
    from refervos.bench.report import Report, as_json, as_markdown
    from refervos.files.writing import write_atomically
    from refervos.loading import find_device
    from refervos.progress import Bar

    known_model(model, preset_names())
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
        modes=chosen(mode, "--mode", MODES),
        sentences=counts(sentences, "--sentences"),
        dtypes=chosen(dtype, "--dtype", DTYPES),
        compiled=compiled,
        baseline=baseline,
    )
    results = []
    with Bar("cases", total=len(cases), show=False if quiet else None) as bar:
        bar.advance(0, cases[0].label)
        for number, result in enumerate(measured_apart(cases), 1):
            results.append(result)
            bar.advance(1, cases[number].label if number < len(cases) else "done")
    report = Report(f"refervos {shlex.join(sys.argv[1:])}", this_machine(template.device), results)
    typer.echo(as_markdown(report))
    if out is not None:
        write_atomically(out, as_json(report))
    if markdown is not None:
        write_atomically(markdown, f"{as_markdown(report)}\n".encode())


def parse_frame_size(text: str) -> tuple[int, int]:
    """Read ``WIDTHxHEIGHT``.

    Args:
        text: Such as ``854x480``.

    Returns:
        Height and width.

    Raises:
        ConfigError: When it is something else, or less than 16 pixels.
    """
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= 16):
        raise ConfigError(f"--frame-size is {text!r}; give width and height of at least 16, such as 854x480.")
    return int(height), int(width)
