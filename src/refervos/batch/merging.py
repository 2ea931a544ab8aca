"""Merge the files of a job into one, after checking that nothing is missing, double or damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from refervos.batch.job import DATA, Job, latest_records
from refervos.batch.shard_files import SHARD, STAMP, canonical, mask_schema, outcomes_of, read_table
from refervos.batch.units import Shard
from refervos.errors import DataError, OutputError
from refervos.files.writing import PartialFile, prepare_folder, refuse_existing, write_atomically, write_error

if TYPE_CHECKING:
    import pyarrow


def merge(job: Job, path: Path, *, partial: bool = False, overwrite: bool = False) -> list[Path]:
    """Write the masks of all units to one Parquet file, and the units to a second one beside it.

    Args:
        job: The job.
        path: File of the masks; that of the units has the same name with the suffix ``.units.parquet``.
        partial: Whether to merge a job that is not finished.
        overwrite: Whether to replace existing files.

    Returns:
        Both files.

    Raises:
        DataError: When the job is not finished, or a file is damaged, foreign or incomplete.
        OutputError: When a file exists already or cannot be written.
    """
    from pyarrow import parquet

    if re.match(r"\w+:/", path.as_posix()) and not path.drive:
        raise OutputError(f"'{path}' is an address; give a file of this machine, and copy it there.")

    units_path = path.with_name(f"{path.name.removesuffix('.parquet')}.units.parquet")
    for each in (path, units_path):
        refuse_existing(each, overwrite)
    shards = {shard.name: shard for shard in job.shards()}
    finished = job.finished()
    missing = set(shards) - finished
    if missing and not partial:
        raise DataError(
            f"{len(missing)} of the {len(shards)} shards of '{job.store.address}' are not finished; run the same "
            "refervos batch command again, or merge what there is with --partial."
        )
    prepare_folder(path.parent)
    records = job.records(finished & set(shards))
    latest = latest_records(shards.values(), records)
    part = PartialFile(path)
    try:
        metadata = {STAMP: canonical(job.stamp).encode()}
        schema = mask_schema().with_metadata(metadata)
        with parquet.ParquetWriter(part.temporary, schema, compression="zstd", use_dictionary=["unit"]) as writer:
            for table in _checked_tables(job, shards, finished):
                writer.write_table(table.replace_schema_metadata(metadata))
        part.put_in_place(overwrite)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        part.discard()
    chosen = [
        (Shard(name, (unit,), shards[name].generation), [record])
        for name, each in sorted(records.items())
        for unit, record in zip(shards[name].units, each, strict=True)
        if latest[unit.name][1] == shards[name].generation
    ]
    write_atomically(units_path, job.encode_records(chosen), overwrite=overwrite)
    return [path, units_path]


def check(job: Job) -> int:
    """Check all files of a job.

    Args:
        job: The job.

    Returns:
        The number of rows of masks.

    Raises:
        DataError: When a file is damaged, foreign or incomplete.
    """
    shards = {shard.name: shard for shard in job.shards()}
    return sum(table.num_rows for table in _checked_tables(job, shards, job.finished()))


def _checked_tables(job: Job, shards: dict[str, Shard], finished: set[str]) -> Iterator[pyarrow.Table]:
    """Yield the table of each finished shard, in the order of their names, after checking it."""
    seen: dict[str, str] = {}
    for name in sorted(finished):
        where = f"{job.store.address}/{DATA}/{name}.parquet"
        if name not in shards:
            raise DataError(f"'{where}' belongs to no plan of this folder; remove it.")
        table = read_table(job.store.read(f"{DATA}/{name}.parquet"), where)
        _check_table(table, shards[name], job, where)
        for unit in table.column("unit").unique().to_pylist():
            if unit in seen:
                raise DataError(f"'{where}' has masks of the unit {unit}, which '{seen[unit]}' has, too; remove one.")
            seen[unit] = name
        yield table


def _check_table(table: pyarrow.Table, shard: Shard, job: Job, where: str) -> None:
    metadata = table.schema.metadata or {}
    stamp, outcomes = outcomes_of(metadata, where)
    if canonical(stamp) != canonical(job.stamp):
        raise DataError(f"'{where}' was written by another model, version or options: {json.dumps(stamp)[:300]}.")
    if metadata.get(SHARD, b"").decode() != shard.name:
        raise DataError(f"'{where}' is a renamed file of another shard; remove it.")
    if not table.schema.equals(mask_schema()):
        raise DataError(f"'{where}' has other columns than refervos batch writes; remove it.")
    if [outcome.unit for outcome in outcomes] != [unit.name for unit in shard.units]:
        raise DataError(f"'{where}' has other units than its plan; remove it.")
    counted = {each["values"]: each["counts"] for each in table.column("unit").value_counts().to_pylist()}
    for outcome, unit in zip(outcomes, shard.units, strict=True):
        expected = outcome.frames * len(unit.expressions) if outcome.status == "ok" else 0
        if counted.pop(unit.name, 0) != expected:
            raise DataError(
                f"'{where}' has not all rows of the unit {unit.name}; remove it, and run refervos batch again."
            )
    if counted:
        raise DataError(f"'{where}' has rows of the unit {next(iter(counted))}, which is not in its plan; remove it.")
