"""Read pickles that contain only plain data.

A pickle is a program for a stack machine with a numbered memo. Python's C unpickler runs code that a pickle names, and
allocates as many memo entries as it states, so that nine bytes can exhaust memory. The pure Python unpickler, several
times slower, grows its memo as needed and can be restricted to the opcodes of plain data (see ``pickletools``).
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
    """Read a pickle of plain containers, numbers and text; anything else is refused, so no code in it can run.

    Args:
        path: A pickle of any protocol, including those of Python 2, whose text is UTF-8 or Windows-1252.

    Returns:
        Its content.

    Raises:
        DataError: When it is missing, damaged, or contains anything else.
    """
    data = read_bytes(path)
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except _RefusedError as error:
        raise DataError(f"{path} was not read: it refers to code ({error}), but only plain data is allowed.") from None
    except Exception as error:  # damaged pickles raise exceptions of many types
        raise DataError(f"{path} is not a readable pickle: {error}.") from error


class _RefusedError(Exception):
    """A reference to code in a pickle."""


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
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.INST),  # these call find_class, which raises
)
"""Opcodes that are executed."""

_KEY_TYPES = (str, int, float, bool)
"""Allowed types of dictionary keys. (Hashing deeply nested tuples can crash the process.)"""

_InPython: Any = pickle._Unpickler  # not typed in typeshed


class _PlainUnpickler(_InPython):
    def find_class(self, module: str, name: str) -> Any:
        raise _RefusedError(f"{module}.{name}")

    def _decode_string(self, value: bytes) -> str:
        """Decode a string of Python 2, which has no declared encoding."""
        return decode_text(value, PUBLISHED_ENCODINGS)

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill(items)

    def _load_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _load_items(self) -> None:
        self._fill(self.pop_mark())

    def _fill(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or not all(type(key) in _KEY_TYPES for key in items[::2]):
            raise ValueError("a dictionary key is neither text nor a number")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _unknown(self) -> None:
        raise ValueError("it has an opcode that does not build plain data")

    dispatch = dict.fromkeys(range(256), _unknown) | {
        **{code[0]: _InPython.dispatch[code[0]] for code in _PLAIN},
        pickle.DICT[0]: _load_dict,
        pickle.SETITEM[0]: _load_item,
        pickle.SETITEMS[0]: _load_items,
    }
