"""Messages for errors that reach the command line: one sentence each, without a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import typer

from refervos.errors import UnknownWordsWarning
from refervos.safe_text import printable

USAGE_ERROR: Any = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")
"""Raised for an invalid command line: the class of click, or of typer's bundled copy of click."""


def report_usage_error(error: Any) -> int:
    """Print the problem of an invalid command line and return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    path = error.ctx.command_path if getattr(error, "ctx", None) else "refervos"
    message = " ".join(error.format_message().split()).rstrip(".")
    return print_error(f"{message}; '{path} --help' lists the arguments and options.", error.exit_code)


def print_error(sentence: str, code: int) -> int:
    """Print a sentence to standard error, if possible, and return the exit code."""
    with contextlib.suppress(OSError, ValueError):
        typer.echo(f"refervos: {printable(sentence)}", err=True)
    return code


@contextlib.contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """Print each warning about unknown words once, as a sentence without the line of the program."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UnknownWordsWarning)
        show, shown = warnings.showwarning, set[str]()

        def show_sentence(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, UnknownWordsWarning):
                show(message, category, *where, **more)
                return
            sentence = printable(str(message))
            if sentence not in shown:
                shown.add(sentence)
                print_warning(sentence)

        warnings.showwarning = show_sentence
        yield


def print_warning(sentence: str) -> None:
    """Print a warning to standard error, if possible."""
    with contextlib.suppress(OSError, ValueError):
        typer.echo(f"warning: {sentence}", err=True)


def describe_unexpected(error: Exception) -> str:
    """Save the traceback of an exception to a file and return a sentence that names it."""
    if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
        path = f" ('{printable(str(error.filename), 200)}')" if error.filename else ""
        return f"the operating system reports an error{path}: {error.strerror}."
    summary = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    if "out of memory" in str(error).lower() or "allocate memory" in str(error):
        return "there is not enough memory; use smaller frames, fewer sentences, a smaller batch or --dtype bfloat16."
    try:
        with tempfile.NamedTemporaryFile("w", prefix="refervos-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write("".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").decode())
        details = f"the details are in {log.name}; please report them."
    except OSError:
        details = "the details could not be written to a file."
    return f"an unexpected error occurred ({summary[:300]}); {details}"


PATH_ERRORS = frozenset({errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS})
"""Operating-system errors caused by a given path, not by the program."""

_SYSTEM_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE}) | PATH_ERRORS
"""Operating-system errors caused by the machine or a path, not by the program."""


def flush_output(code: int) -> int:
    """Flush standard output and return the exit code; a failure is reported here, not by Python at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print_error(f"standard output cannot be written: {getattr(error, 'strerror', None) or error}.", 1)
        return code or 1
    return code
