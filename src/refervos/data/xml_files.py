"""Read untrusted XML."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from refervos.errors import DataError, MissingDependencyError


def read_xml(path: Path) -> Element:
    """Read an XML file without entity definitions, with which a small file could exhaust memory.

    Args:
        path: The file.

    Returns:
        The root element.

    Raises:
        DataError: When it is missing, damaged, or has a document type declaration, which could define entities.
        MissingDependencyError: When defusedxml is not installed.
    """
    try:
        from defusedxml.common import DTDForbidden
        from defusedxml.ElementTree import fromstring
    except ImportError as error:
        raise MissingDependencyError("CVAT exports need defusedxml: pip install 'refervos[data]'.") from error
    try:
        root: Element = fromstring(path.read_bytes(), forbid_dtd=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except DTDForbidden:
        raise DataError(f"{path} was not read: it has a document type declaration, which no CVAT export has.") from None
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is not valid XML: {error}.") from error
    return root
