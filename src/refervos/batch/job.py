"""A job: the stamp of a folder of results, and the plans that say which units it has."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import refervos
from refervos.batch.decoding import Decoder
from refervos.batch.inputs import InputFacts, facts_of_all
from refervos.batch.manifest import Entry
from refervos.batch.shard_files import (
    STAMP,
    UnitRecord,
    canonical,
    encode_table,
    outcomes_of,
    read_table,
    unit_schema,
)
from refervos.batch.storage import LocalStore, Store, is_address, open_store
from refervos.batch.units import SHARD_SECONDS, Cost, Shard, Unit, make_unit, pack
from refervos.errors import DataError, OutputError
from refervos.processes import usable_cpus
from refervos.text.vocabulary import warn_of_unknown_words

if TYPE_CHECKING:
    from refervos.segmenter import Segmenter

JOB = "job.json"
PLAN, DATA, UNITS, LEASES, STATES, LOGS = "_plan", "data", "_units", "_leases", "_state", "_log"
"""Sub-folders of a folder of results."""

_FORMAT = 1


@dataclass(frozen=True)
class Options:
    """Options that determine masks, apart from the model's weights. Fixed for a folder of results.

    Attributes:
        model: Model folder, name or hub id; an absolute path if it is a folder.
        settings: Changed fields of the model's configuration.
        dtype: Data type of the computation.
        clip: Frames per clip; None for the model's.
        on_cut: See ``Session``.
        on_repeat: See ``Session``.
        borders: See ``Session``; None for the model's.
        threads: Threads of a worker on a CPU; another number changes masks by rounding.
    """

    model: str = "miniature"
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    clip: int | None = None
    on_cut: str = "ignore"
    on_repeat: str = "answer"
    borders: str | None = None
    threads: int = 1

    def load(self, device: str | None) -> Segmenter[Any]:
        """Load the model."""
        from refervos.loading import load

        return load(self.model, device=device, dtype=self.dtype, **self.settings)


@dataclass(frozen=True)
class Job:
    """A folder of results.

    Attributes:
        store: The folder.
        options: Options of the masks.
        fingerprint: Fingerprint of the model.
        version: Version of refervos.
        cost: Cost of the work, from which shards are packed and time limits computed.
        shard_seconds: Least work of a shard.
    """

    store: Store
    options: Options
    fingerprint: str
    version: str = refervos.__version__
    cost: Cost = field(default_factory=Cost)
    shard_seconds: float = SHARD_SECONDS

    @property
    def stamp(self) -> dict[str, Any]:
        """What must be equal in all files of the folder."""
        options = {**dataclasses.asdict(self.options), "settings": dict(self.options.settings)}
        return {"fingerprint": self.fingerprint, "version": self.version, "options": options}

    @classmethod
    def open(cls, store: Store) -> Job:
        """Open an existing folder of results.

        Raises:
            OutputError: When it is none, or was written by another version.
        """
        try:
            written = json.loads(store.read(JOB))
            if written["format"] != _FORMAT:
                raise OutputError(f"'{store.address}' was written by a later version of refervos; update refervos.")
            return cls(
                store,
                Options(**written["stamp"]["options"]),
                written["stamp"]["fingerprint"],
                written["stamp"]["version"],
                Cost(**written["cost"]),
                written["shard_seconds"],
            )
        except OSError as error:
            raise OutputError(f"'{store.address}' holds no results of refervos batch; check the path.") from error
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(f"'{store.address}/{JOB}' is damaged; choose another folder.") from error

    def begin(self) -> Job:
        """Stamp an empty folder with this job, or check that the folder has the same stamp.

        Returns:
            The job of the folder, whose cost and shards may differ from this one's.

        Raises:
            OutputError: When the folder has results of another model, version or other options.
        """
        content = {
            "format": _FORMAT,
            "stamp": self.stamp,
            "cost": dataclasses.asdict(self.cost),
            "shard_seconds": self.shard_seconds,
        }
        if self.store.create(JOB, canonical(content).encode()):
            return self
        present = Job.open(self.store)
        for name, ours in self.stamp.items():
            theirs = present.stamp[name]
            if name == "options" and theirs != ours:
                name = next(each for each in ours if ours[each] != theirs.get(each))
                ours, theirs = ours[name], theirs.get(name)
            if theirs != ours:
                raise OutputError(
                    f"'{self.store.address}' has results with {name} {_short(theirs)}, not {_short(ours)}; "
                    "choose another folder, or repeat the options of the first run."
                )
        return present

    # Plans.

    def shards(self) -> list[Shard]:
        """Read all plans.

        Returns:
            All shards, those with most work first.

        Raises:
            DataError: When a plan is damaged.
        """
        shards: list[Shard] = []
        for name in self.store.names(PLAN):
            shards += _read_plan(self.store.read(f"{PLAN}/{name}"), f"{self.store.address}/{PLAN}/{name}")
        return sorted(shards, key=lambda shard: (-shard.work, shard.name))

    def add(self, units: Sequence[Unit]) -> int:
        """Plan units that no plan has yet.

        Args:
            units: The units.

        Returns:
            The number of new units.
        """
        while True:
            known = {unit.name for shard in self.shards() for unit in shard.units}
            new = [unit for unit in units if unit.name not in known]
            if not new or self._write_plan(new, generation=0):
                return len(new)

    def repeat_failed(self) -> int:
        """Plan failed units again.

        Returns:
            Their number.
        """
        while True:
            shards = self.shards()
            latest = latest_records(shards, self.records())
            failed = [unit for unit, (record, _) in latest.items() if record.status == "failed"]
            planned: dict[str, int] = {}
            units: dict[str, Unit] = {}
            for shard in shards:
                for unit in shard.units:
                    planned[unit.name] = max(shard.generation, planned.get(unit.name, 0))
                    units[unit.name] = unit
            again = [units[name] for name in failed if planned[name] == latest[name][1]]  # not planned again already
            generation = 1 + max((planned[unit.name] for unit in again), default=0)
            if not again or self._write_plan(again, generation):
                return len(again)

    def _write_plan(self, units: Sequence[Unit], generation: int) -> bool:
        """Write the next plan; False if another process was faster."""
        import pyarrow

        number = len(self.store.names(PLAN))
        rows = [
            {"shard": f"{number:04d}-{index:05d}", "generation": generation, **dataclasses.asdict(unit)}
            for index, shard in enumerate(pack(units, self.shard_seconds))
            for unit in shard
        ]
        table = pyarrow.Table.from_pylist([{**row, "unit": row.pop("name")} for row in rows], schema=_plan_schema())
        return self.store.create(f"{PLAN}/{number:04d}.parquet", encode_table(table, {STAMP: canonical(self.stamp)}))

    # Results.

    def finished(self) -> set[str]:
        """Return the names of finished shards."""
        return {name.removesuffix(".parquet") for name in self.store.names(DATA) if name.endswith(".parquet")}

    def records(self, shards: Iterable[str] | None = None) -> dict[str, list[UnitRecord]]:
        """Read the outcomes of finished shards.

        Args:
            shards: Names of shards; default all that are finished.

        Returns:
            The outcomes of each shard's units; without times if the process that wrote the shard was killed before it
            could write them.
        """
        names = self.finished() if shards is None else set(shards)
        with_times = {name.removesuffix(".parquet") for name in self.store.names(UNITS)}
        return {name: self._read_records(name, name in with_times) for name in sorted(names)}

    def _read_records(self, shard: str, with_times: bool) -> list[UnitRecord]:
        if with_times:
            table = read_table(self.store.read(f"{UNITS}/{shard}.parquet"), f"{UNITS}/{shard}.parquet")
            names = [each.name for each in dataclasses.fields(UnitRecord)]
            return [UnitRecord(**row) for row in table.select(names).to_pylist()]
        path = f"{DATA}/{shard}.parquet"
        table = read_table(self.store.read(path), path)
        return outcomes_of(table.schema.metadata or {}, path)[1]

    def write_records(self, shard: Shard, records: Sequence[UnitRecord]) -> None:
        """Write the rows of a finished shard's units, unless they exist."""
        self.store.create(f"{UNITS}/{shard.name}.parquet", self.encode_records([(shard, records)]))

    def write_missing_records(self) -> None:
        """Write the rows of units of finished shards whose worker was killed before it could."""
        written = {name.removesuffix(".parquet") for name in self.store.names(UNITS)}
        shards = {shard.name: shard for shard in self.shards()}
        for name, records in self.records(self.finished() & set(shards) - written).items():
            self.write_records(shards[name], records)

    def encode_records(self, outcomes: Iterable[tuple[Shard, Sequence[UnitRecord]]]) -> bytes:
        """Write a Parquet file with a row for each unit."""
        import pyarrow

        rows = [
            {
                **dataclasses.asdict(record),
                "uri": unit.uri,
                "start": unit.start,
                "end": unit.end,
                "expressions": list(unit.expressions),
                "shard": shard.name,
                "generation": shard.generation,
                "fingerprint": self.fingerprint,
                "version": self.version,
            }
            for shard, records in outcomes
            for unit, record in zip(shard.units, records, strict=True)
        ]
        return encode_table(pyarrow.Table.from_pylist(rows, schema=unit_schema()), {STAMP: canonical(self.stamp)})


def latest_records(
    shards: Iterable[Shard], records: Mapping[str, Sequence[UnitRecord]]
) -> dict[str, tuple[UnitRecord, int]]:
    """Return the latest outcome of each finished unit, with its generation: a repetition replaces a failure."""
    latest: dict[str, tuple[UnitRecord, int]] = {}
    for shard in sorted(shards, key=lambda shard: shard.generation):
        for record in records.get(shard.name, ()):
            latest[record.unit] = (record, shard.generation)
    return latest


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 20 else f"{text[:12]}..."


def _plan_schema() -> Any:
    import pyarrow

    text, whole = pyarrow.string(), pyarrow.int64()
    return pyarrow.schema(
        [
            *[("shard", text), ("generation", pyarrow.int32()), ("unit", text), ("uri", text), ("version", text)],
            *[("start", whole), ("end", whole), ("expressions", pyarrow.list_(text)), ("frames", whole)],
            ("work", pyarrow.float64()),
        ]
    )


def _read_plan(data: bytes, where: str) -> list[Shard]:
    shards: dict[str, list[Unit]] = {}
    generations: dict[str, int] = {}
    try:
        for row in read_table(data, where).to_pylist():
            shard = row.pop("shard")
            generations[shard] = row.pop("generation")
            unit = Unit(name=row.pop("unit"), expressions=tuple(row.pop("expressions")), **row)
            shards.setdefault(shard, []).append(unit)
    except (KeyError, TypeError) as error:
        raise DataError(f"'{where}' is damaged; choose another folder.") from error
    return [Shard(name, tuple(units), generations[name]) for name, units in shards.items()]


def begin_job(
    out: str | Path,
    entries: Sequence[Entry],
    options: Options,
    cost: Cost,
    shard_seconds: float = SHARD_SECONDS,
    *,
    patience: float = 60.0,
    advance: Callable[[int], None] = lambda count: None,
) -> Job:
    """Begin a job, or go on with it: stamp or check its folder, and plan the videos that no plan has yet.

    Args:
        out: Folder of results, see ``open_store``.
        entries: The manifest.
        options: Options of the masks.
        cost: Cost of the work.
        shard_seconds: Least work of a shard.
        patience: See ``plan_units``.
        advance: See ``plan_units``.

    Returns:
        The job.

    Warns:
        UnknownWordsWarning: When sentences have words that the model does not know.

    Raises:
        OutputError: When the folder has results of another model, version or other options.
        DataError: When no video can be found.
    """
    from refervos.loading import trained_words

    store = open_store(out)
    sentences = [expression for entry in entries for expression in entry.expressions]
    warn_of_unknown_words(sentences, trained_words(options.model))
    job = Job(store, options, _fingerprint(store, options), cost=cost, shard_seconds=shard_seconds).begin()
    remove_leftovers(store)
    job.add(plan_units(entries, job.stamp, job.cost, patience=patience, advance=advance))
    return job


def _fingerprint(store: Store, options: Options) -> str:
    """Return the model's fingerprint: that of the folder if it has the same options, which the workers will check."""
    if JOB in store.names(""):
        present = Job.open(store)
        if present.options == options:
            return present.fingerprint
    return options.load("cpu").fingerprint()


def plan_units(
    entries: Sequence[Entry],
    stamp: Mapping[str, Any],
    cost: Cost,
    *,
    patience: float = 60.0,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Unit]:
    """Make the units of a manifest: look up the version of each video and estimate its work.

    The number of frames comes from the manifest, or else for videos on this machine from their header, read in child
    processes that can be killed; or else it is estimated from the size.

    Args:
        entries: The manifest.
        stamp: Stamp of the job.
        cost: Cost of the work.
        patience: Seconds to wait for a video's header.
        advance: Called with the number of further videos that were looked up.

    Returns:
        One unit for each entry.

    Raises:
        DataError: When no video can be found.
    """
    facts = facts_of_all([entry.uri for entry in entries])
    if all(each.missing for each in facts):
        reason = f" ({facts[0].problem})" if facts[0].problem else ""
        hint = "check the address and the credentials" if reason else "paths are relative to the manifest's folder"
        raise DataError(
            f"none of the {len(entries)} videos of the manifest can be found, such as '{entries[0].uri}'{reason}; "
            f"{hint}."
        )
    frames = _count_frames(entries, facts, patience, advance)
    identity = {"stamp": stamp}
    return [make_unit(*each, identity, cost) for each in zip(entries, facts, frames, strict=True)]


def _count_frames(
    entries: Sequence[Entry], facts: Sequence[InputFacts], patience: float, advance: Callable[[int], None]
) -> list[int | None]:
    decoders: SimpleQueue[Decoder] = SimpleQueue()
    all_decoders = [Decoder() for _ in range(max(1, min(usable_cpus(), len(entries) // 8)))]
    for decoder in all_decoders:
        decoders.put(decoder)

    def count(pair: tuple[Entry, InputFacts]) -> int | None:
        entry, known = pair
        try:
            if entry.frames is not None or known.missing or not known.size or is_address(entry.uri):
                return None
            decoder = decoders.get()
            try:
                return decoder.count_frames(entry.uri, patience)
            finally:
                decoders.put(decoder)
        finally:
            advance(1)

    try:
        with ThreadPoolExecutor(len(all_decoders)) as threads:
            return list(threads.map(count, zip(entries, facts, strict=True)))
    finally:
        for decoder in all_decoders:
            decoder.close()


def local_path(model: str) -> str:
    """Return a model's absolute path if it is a file or folder of this machine, so that workers elsewhere find it."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def remove_leftovers(store: Store) -> None:
    """Remove unfinished files of killed processes, where the store can have any."""
    if isinstance(store, LocalStore):
        for folder in ("", PLAN, DATA, UNITS, LEASES, STATES):
            store.remove_leftovers(folder)
