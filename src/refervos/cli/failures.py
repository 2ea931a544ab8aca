"""What is said of errors that reach the command line: one sentence each, and no traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from typing import Any

import typer

from refervos.safe_text import printable

MISUSED: Any = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")
"""Raised where a command line is not as ``--help`` says: click's class, or that of typer's own copy of click."""


def misused(error: Any) -> int:
    """Say what is wrong with the command line, and give back the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    path = error.ctx.command_path if getattr(error, "ctx", None) else "refervos"
    message = " ".join(error.format_message().split()).rstrip(".")
    return complain(f"{message}; '{path} --help' tells what can be given.", error.exit_code)


def complain(sentence: str, code: int) -> int:
    """Print a sentence on standard error, as far as that is possible, and give back the exit code."""
    with contextlib.suppress(OSError, ValueError):
        typer.echo(f"refervos: {printable(sentence)}", err=True)
    return code


def unexpected(error: Exception) -> str:
    """Keep the traceback of an exception in a file, and say where."""
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        place = f" ('{printable(str(error.filename), 200)}')" if error.filename else ""
        return f"the system refuses what is needed{place}: {error.strerror}."
    what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    if "out of memory" in str(error).lower() or "allocate memory" in str(error):
        return "there is not enough memory; use smaller frames, fewer sentences, a smaller batch or --dtype bfloat16."
    try:
        with tempfile.NamedTemporaryFile("w", prefix="refervos-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write("".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").decode())
        details = f"the details are in {log.name}; please report them."
    except OSError:
        details = "no file could be made for the details."
    return f"something went wrong that should not have ({what[:300]}); {details}"


OF_A_NAME = frozenset({errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS})
"""Errors of the system that tell of what was named, and not of the program."""

_OF_THE_SYSTEM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE}) | OF_A_NAME
"""Errors that tell of the machine and not of the program."""


def flushed(code: int) -> int:
    """Write out what is still to be printed; where that fails, say so instead of Python's own complaint at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            complain(f"standard output cannot be written: {getattr(error, 'strerror', None) or error}.", 1)
        return code or 1
    return code
