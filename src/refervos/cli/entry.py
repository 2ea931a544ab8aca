"""The command line itself: its commands, and what happens to errors and signals that reach it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import refervos
from refervos.cli.bench import bench
from refervos.cli.convert import convert, info
from refervos.cli.data import data_app
from refervos.cli.diagnose import diagnose
from refervos.cli.evaluate import compare, evaluate, score, submit
from refervos.cli.export import export
from refervos.cli.failures import MISUSED, OF_A_NAME, complain, flushed, misused, unexpected
from refervos.cli.segment import segment
from refervos.cli.stopping import INTERRUPTED, Stopping
from refervos.cli.train import train
from refervos.errors import RefervosError

app = typer.Typer(
    name="refervos",
    help="Referring video object segmentation: a video and a sentence in, that object's mask in every frame out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"refervos {refervos.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Referring video object segmentation: a video and a sentence in, that object's mask in every frame out."""


app.command()(segment)
app.command()(convert)
app.command()(info)
app.command()(train)
app.command()(diagnose)
app.command("eval")(evaluate)
app.command()(score)
app.command()(submit)
app.command()(compare)
app.command()(bench)
app.command()(export)
app.add_typer(data_app)


def main() -> None:
    """Run the command line; what is the input's fault becomes one sentence and exit code 2.

    An exception that nobody expected becomes one sentence and exit code 1, and its traceback goes into a file.
    """
    # transformers reports on standard error what no user asked for, such as a missing torchvision.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with Stopping() as stopping:
        try:
            code = app(prog_name="refervos", standalone_mode=False, obj=stopping) or 0
        except RefervosError as error:
            code = complain(str(error), 2)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except MISUSED as error:
            code = misused(error)
        except MemoryError:
            code = complain("there is not enough memory; use smaller frames, fewer sentences or a smaller batch.", 1)
        except BrokenPipeError:
            code = 1  # whoever read the output has gone
        except Exception as error:
            named = isinstance(error, OSError) and error.errno in OF_A_NAME
            code = complain(unexpected(error), 2 if named else 1)
    if stopping.received is not None and code:
        code = stopping.exit_code
    sys.exit(flushed(code))
