"""Reading pickles of plain data, and nothing else that a pickle can do.

A pickle is a program for a small machine with a stack and numbered places. Python's fast reader runs code that a pickle
names, and makes room for as many places as it tells, so that nine bytes can take all memory. Its reader in Python,
several times slower, makes room for what is put there, and can be left with the instructions of plain data alone
(``pickletools`` describes them all).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refervos.data.files import PUBLISHED_ENCODINGS, read_bytes
from refervos.errors import DataError
from refervos.files.plain_text import decode_text


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of plain containers, numbers and text; anything else in it is refused, so nothing in it can run.

    Args:
        path: The file, of any protocol, also of Python 2, whose text is UTF-8 or Windows-1252.

    Returns:
        What it holds.

    Raises:
        DataError: When it is missing or damaged, or holds anything else.
    """
    data = read_bytes(path)
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except _RefusedError as error:
        raise DataError(f"{path} was not read: it refers to code, {error}, and should hold plain data only.") from None
    except Exception as error:  # damaged pickles fail in every way there is
        raise DataError(f"{path} is no pickle that can be read: {error}.") from error


class _RefusedError(Exception):
    """A pickle refers to something that is defined in code."""


_PLAIN = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.FLOAT, pickle.BINFLOAT),
    *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4),
    *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
    *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.INST),  # which end in find_class, and there in an error
)
"""The instructions that are carried out."""

_NAMES = (str, int, float, bool)
"""What entries of a dictionary may be called. (The hash of tuples of tuples of ... can end the process.)"""

_InPython: Any = pickle._Unpickler  # typeshed does not know what it is made of


class _PlainUnpickler(_InPython):
    def find_class(self, module: str, name: str) -> Any:
        raise _RefusedError(f"{module}.{name}")

    def _decode_string(self, value: bytes) -> str:
        """A text of Python 2, which does not tell its encoding."""
        return decode_text(value, PUBLISHED_ENCODINGS)

    def _load_dict(self) -> None:
        things = self.pop_mark()
        self.append({})
        self._fill(things)

    def _load_item(self) -> None:
        value, name = self.stack.pop(), self.stack.pop()
        self._fill([name, value])

    def _load_items(self) -> None:
        self._fill(self.pop_mark())

    def _fill(self, things: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or not all(type(name) in _NAMES for name in things[::2]):
            raise ValueError("it does not fill a dictionary by names or numbers")
        target.update(zip(things[::2], things[1::2], strict=True))

    def _unknown(self) -> None:
        raise ValueError("it has an instruction that makes no plain data")

    dispatch = dict.fromkeys(range(256), _unknown) | {
        **{code[0]: _InPython.dispatch[code[0]] for code in _PLAIN},
        pickle.DICT[0]: _load_dict,
        pickle.SETITEM[0]: _load_item,
        pickle.SETITEMS[0]: _load_items,
    }
