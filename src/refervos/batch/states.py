"""Saved states of units, from which any worker continues with identical masks."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refervos.batch.job import STATES
from refervos.batch.shard_files import MaskRows, UnitRecord, encode_table, mask_table, read_table, rows_of
from refervos.batch.storage import Store
from refervos.errors import RefervosError, StateError
from refervos.session.session import Session


@dataclass
class SavedUnit:
    """A unit as it was saved.

    Attributes:
        rows: Its rows so far.
        frame: The frame to continue with.
        seconds: Seconds of work so far.
        session: The session at that frame; None if the unit is finished.
        record: The outcome; None if it is not finished.
    """

    rows: MaskRows
    frame: int
    seconds: float
    session: Session | None = None
    record: UnitRecord | None = None


def save_unit(store: Store, unit: str, saved: SavedUnit) -> None:
    """Save a unit: everything in one file, which is complete or absent.

    Args:
        store: Folder of results.
        unit: Name of the unit.
        saved: Its state.

    Raises:
        OutputError: When it cannot be written.
    """
    about = {"unit": unit, "frame": saved.frame, "seconds": saved.seconds}
    about["record"] = None if saved.record is None else asdict(saved.record)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive, tempfile.TemporaryDirectory(prefix="refervos-") as folder:
        archive.writestr("about.json", json.dumps(about))
        archive.writestr("rows.parquet", encode_table(mask_table([unit], [saved.rows]), {}))
        if saved.session is not None:
            saved.session.save(Path(folder) / "session")
            archive.write(Path(folder) / "session", "session")
    store.replace(_path(unit), written.getvalue())


def load_unit(store: Store, unit: str, model: Any) -> SavedUnit | None:
    """Load the saved state of a unit.

    Args:
        store: Folder of results.
        unit: Name of the unit.
        model: The model on which its session ran.

    Returns:
        The state; None if there is none, or it is damaged, so that the unit begins again.
    """
    try:
        data = store.read(_path(unit))
    except FileNotFoundError:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, tempfile.TemporaryDirectory(prefix="refervos-") as folder:
            about = json.loads(archive.read("about.json"))
            if about["unit"] != unit:
                raise StateError(f"the state is of the unit {about['unit']}; it must be of {unit}.")
            rows = rows_of(read_table(archive.read("rows.parquet"), _path(unit)))
            record = None if about["record"] is None else UnitRecord(**about["record"])
            session = None
            if record is None:
                session = model.restore(archive.extract("session", folder))
            return SavedUnit(rows, about["frame"], about["seconds"], session, record)
    except (RefervosError, KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile):
        return None


def drop_unit(store: Store, unit: str) -> None:
    """Remove the saved state of a unit, if there is one."""
    store.remove(_path(unit))


def saved_units(store: Store) -> set[str]:
    """Return the names of units that have a saved state."""
    return {name.removesuffix(".state") for name in store.names(STATES)}


def _path(unit: str) -> str:
    return f"{STATES}/{unit}.state"
