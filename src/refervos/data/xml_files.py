"""Reading XML of which nobody knows who wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from refervos.errors import DataError


def read_xml(path: Path) -> ElementTree.Element:
    """Read an XML file that defines no entities of its own, with which a small file could fill all memory.

    Args:
        path: The file.

    Returns:
        Its root.

    Raises:
        DataError: When it is missing or damaged, or has a document type declaration, the place of such entities.
    """
    try:
        return ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_PlainBuilder()))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except _DocumentTypeError:
        raise DataError(f"{path} was not read: it declares a document type, which no export of CVAT does.") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is no valid XML: {error}.") from error


class _DocumentTypeError(Exception):
    """An XML file declares a document type."""


class _PlainBuilder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> Any:
        raise _DocumentTypeError
