"""Reading XML of which nobody knows who wrote it."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from refervos.errors import DataError, MissingDependencyError


def read_xml(path: Path) -> Element:
    """Read an XML file that defines no entities of its own, with which a small file could fill all memory.

    Args:
        path: The file.

    Returns:
        Its root.

    Raises:
        DataError: When it is missing or damaged, or has a document type declaration, the place of such entities.
        MissingDependencyError: Without defusedxml.
    """
    try:
        from defusedxml.common import DTDForbidden
        from defusedxml.ElementTree import fromstring
    except ImportError as error:
        raise MissingDependencyError("exports of CVAT need defusedxml: pip install 'refervos[data]'.") from error
    try:
        root: Element = fromstring(path.read_bytes(), forbid_dtd=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except DTDForbidden:
        raise DataError(f"{path} was not read: it declares a document type, which no export of CVAT does.") from None
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is no valid XML: {error}.") from error
    return root
