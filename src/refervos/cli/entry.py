"""Entry point of the command line: the commands, and the handling of errors and signals."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import refervos
from refervos.cli.ask import ask
from refervos.cli.batch import batch_app
from refervos.cli.bench import bench
from refervos.cli.convert import convert, info
from refervos.cli.data import data_app
from refervos.cli.diagnose import diagnose
from refervos.cli.evaluate import compare, evaluate, score, submit
from refervos.cli.export import export
from refervos.cli.failures import (
    PATH_ERRORS,
    USAGE_ERROR,
    describe_unexpected,
    flush_output,
    print_error,
    report_usage_error,
    warnings_as_sentences,
)
from refervos.cli.models import models_app
from refervos.cli.segment import segment
from refervos.cli.serve import serve
from refervos.cli.stopping import INTERRUPTED, StopSignals
from refervos.cli.studio import studio
from refervos.cli.train import train
from refervos.errors import RefervosError

app = typer.Typer(
    name="refervos",
    help="Referring video object segmentation: segment the object that a sentence describes in every frame of a video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        typer.echo(f"refervos {refervos.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Referring video object segmentation: segment the object that a sentence describes in every frame of a video."""


app.command()(segment)
app.command()(ask)
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
app.command()(serve)
app.command()(studio)
app.add_typer(batch_app)
app.add_typer(models_app)
app.add_typer(data_app)


def main() -> None:
    """Run the command line; errors of the input are printed as one sentence with exit code 2.

    Unexpected exceptions are printed as one sentence with exit code 1, and their traceback is saved to a file.
    """
    # transformers prints irrelevant warnings to standard error, for example about torchvision.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with StopSignals() as signals, warnings_as_sentences():
        try:
            code = app(prog_name="refervos", standalone_mode=False, obj=signals) or 0
        except RefervosError as error:
            code = print_error(str(error), 2)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except USAGE_ERROR as error:
            code = report_usage_error(error)
        except MemoryError:
            code = print_error("there is not enough memory; use smaller frames, fewer sentences or a smaller batch.", 1)
        except BrokenPipeError:
            code = 1  # the reader of the output has closed it
        except Exception as error:
            bad_path = isinstance(error, OSError) and error.errno in PATH_ERRORS
            code = print_error(describe_unexpected(error), 2 if bad_path else 1)
    if signals.received is not None and code:
        code = signals.exit_code
    sys.exit(flush_output(code))
