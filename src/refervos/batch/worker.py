"""A worker: takes shards, segments their units, and commits one file for each shard.

``python -m refervos.batch.worker FOLDER SETTINGS`` is what the runner of local processes starts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from refervos.batch.decoding import Decoder
from refervos.batch.job import DATA, Job
from refervos.batch.leases import LASTS, Lease, Leases, worker_name
from refervos.batch.log import WorkerLog
from refervos.batch.shard_files import MaskRows, UnitRecord, encode_shard
from refervos.batch.states import SavedUnit, drop_unit, load_unit, save_unit, saved_units
from refervos.batch.storage import open_store
from refervos.batch.units import Shard, Unit
from refervos.errors import ConfigError, EvaluationError, OutputError, RefervosError, UnknownWordsWarning
from refervos.pipeline import segment_frames

STOPPED = 128 + signal.SIGTERM
"""Exit code of a worker that was stopped and saved its work."""

ATTEMPTS = 3
"""Attempts at a unit before it counts as failed."""

LOST_LIMIT = 10
"""Workers that may die at a unit without getting further; more than ``ATTEMPTS``, as machines die for other reasons."""

_UNEXPECTED_LIMIT = 5
"""Units in a row that may fail by an unexpected error, as of a broken GPU, before the worker gives up."""

_WAITING = 2.0
"""Seconds between two looks for a shard while other workers hold all that are left."""

_LEASES_LOOKED_AT = 4
"""Leases of other workers that a worker looks at whenever it takes a shard."""

_TIMES_EXPECTED = 10.0
"""A decoder is killed if its caller has waited so many times longer than the whole unit should take."""


class WorkerDiedError(RefervosError):
    """Workers died while they processed a unit."""


class _StoppedError(Exception):
    """The worker must stop."""


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker that do not affect masks.

    Attributes:
        device: Device of the model; None for a GPU if available.
        timeout: Seconds to wait for a frame from the decoder before it is killed.
        save_every: Seconds of work on a unit after which its state is saved.
        lease: Seconds after which the shards of a worker that gives no sign are taken over.
        part: Share of the shards to process: ``(i, n)`` for each n-th from the i-th on.
        started: When the worker's process was started, in seconds since 1970; None if unknown.
    """

    device: str | None = None
    timeout: float = 60.0
    save_every: float = 60.0
    lease: float = LASTS
    part: tuple[int, int] = (0, 1)
    started: float | None = None


class Worker:
    """Worker with a loaded model.

    Args:
        job: The job.
        settings: Settings of the worker.
        stop: Returns whether the worker must stop at the end of the present clip.

    Raises:
        ConfigError: When the model is not the one that the job was planned for.
    """

    def __init__(
        self, job: Job, settings: WorkerSettings = WorkerSettings(), stop: Callable[[], bool] = lambda: False
    ) -> None:
        started = settings.started or time.time()
        import torch

        self._job, self._store, self._settings, self._stop = job, job.store, settings, stop
        self.name = worker_name()
        self._log = WorkerLog(self._store, self.name)
        self._log.write("start", host=socket.gethostname(), started=round(started, 3))
        self._model = job.options.load(settings.device)
        if self._model.device.type == "cpu":
            torch.set_num_threads(job.options.threads)
        if self._model.fingerprint() != job.fingerprint:
            raise ConfigError(
                f"the model {job.options.model} has changed since '{self._store.address}' was begun; restore it, or "
                "choose another folder."
            )
        self._leases = Leases(self._store, self.name, lasts=settings.lease)
        self._shards: dict[str, Shard] = {}
        self._held: tuple[Shard, Lease] | None = None
        self._decoder = Decoder(self._poll)
        self._unexpected = 0
        self._log.write("ready")

    @property
    def frames(self) -> int:
        """Number of frames segmented so far."""
        return self._log.frames

    # Shards.

    def run(self) -> None:
        """Process shards until none is left, or the worker must stop.

        Raises:
            OutputError: When results cannot be written.
            EvaluationError: When videos fail one after another by unexpected errors.
        """
        first, step = self._settings.part
        shards = self._job.shards()[first::step]
        try:
            while found := self._next(shards):
                self.process(*found)
        except _StoppedError:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """End the decoder's process."""
        self._decoder.close()
        self._log.write("stop")

    def process_named(self, name: str) -> bool:
        """Process one shard, for runners that decide which; wait if another worker holds it.

        Args:
            name: Name of the shard.

        Returns:
            Whether it is finished, by this worker or another; False if this one must stop.
        """
        try:
            if name not in self._shards:
                self._shards = {shard.name: shard for shard in self._job.shards()}
            found = self._next([self._shards[name]])
            if found is not None:
                self.process(*found)
        except _StoppedError:
            return False
        return True

    def _next(self, shards: Sequence[Shard]) -> tuple[Shard, Lease] | None:
        """Take the largest shard that is left, waiting while other workers hold all of them; None if none is left."""
        while True:
            finished, taken = self._job.finished(), self._leases.taken()
            left = [shard for shard in shards if shard.name not in finished]
            if not left:
                return None
            for shard in self._order(left, taken):
                if self._stop():
                    raise _StoppedError
                lease = self._leases.acquire(shard.name)
                if lease is None:
                    continue
                if shard.name not in self._job.finished():
                    return shard, lease
                self._leases.release(shard.name)
            self._log.beat()
            time.sleep(_WAITING if not self._stop() else 0)

    def _order(self, left: Sequence[Shard], taken: set[str]) -> list[Shard]:
        """Order shards by work: those without a lease and a few with one, whose worker may be dead; then the rest.

        A large shard of a dead worker must not wait until the end, but each worker cannot look at all leases each time.
        """
        leased = [shard.name for shard in left if shard.name in taken]
        looked_at = set(random.sample(leased, min(_LEASES_LOOKED_AT, len(leased))))
        return sorted(left, key=lambda shard: shard.name in taken and shard.name not in looked_at)

    def process(self, shard: Shard, lease: Lease) -> None:
        """Process a shard and commit its file.

        Args:
            shard: The shard.
            lease: Its lease, released at the end.
        """
        self._held = shard, lease
        saved = saved_units(self._store)
        begun = self._log.clocks()
        finished: dict[str, tuple[UnitRecord, MaskRows]] = {}
        try:
            for unit in shard.units:
                finished[unit.name] = self._segment_unit(unit, lease, unit.name in saved)
            self._commit(shard, finished, begun=begun, segmented=self._log.clocks())
        except _StoppedError:
            for name, (record, rows) in finished.items():
                save_unit(self._store, name, SavedUnit(rows, 0, record.seconds or 0.0, record=record))
            self._log.write("saved", shard=shard.name)
            raise
        finally:
            self._held = None
            self._leases.release(shard.name)

    def _commit(self, shard: Shard, finished: dict[str, tuple[UnitRecord, MaskRows]], **moments: Any) -> None:
        """Write the file of a shard, and log the moments of its work, from which costs are measured."""
        records = [finished[unit.name][0] for unit in shard.units]
        rows = [finished[unit.name][1] for unit in shard.units]
        data = encode_shard(shard.name, self._job.stamp, records, rows)
        if self._store.create(f"{DATA}/{shard.name}.parquet", data):
            self._job.write_records(shard, records)
            self._log.write("commit", shard=shard.name, units=len(records), **moments)
        for unit in shard.units:
            drop_unit(self._store, unit.name)

    def _poll(self) -> None:
        """Renew the lease, write a heartbeat, and stop if the worker must."""
        if self._held is not None:
            shard, lease = self._held
            self._leases.renew(shard.name, lease)
            self._log.beat(unit=lease.unit, shard=shard.name)
        if self._stop():
            raise _StoppedError

    # Units.

    def _segment_unit(self, unit: Unit, lease: Lease, has_state: bool) -> tuple[UnitRecord, MaskRows]:
        """Segment a unit, again if it fails; return its outcome and its rows, none if it failed."""
        saved = load_unit(self._store, unit.name, self._model) if has_state else None
        if saved is not None and saved.record is not None:
            return saved.record, saved.rows
        lease.unit, lease.frame = unit.name, saved.frame if saved else unit.start
        lost = lease.deaths(unit.name, lease.frame)
        assert self._held is not None
        self._leases.renew(self._held[0].name, lease, now=True)
        begun = time.monotonic()
        error: Exception
        if lost >= LOST_LIMIT:
            error = WorkerDiedError(
                f"{lost} workers in a row died while they processed '{unit.uri}'; look at this video."
            )
            return self._failure(unit, error, lost, begun), MaskRows()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                record, rows = self._attempt(unit, saved)
                record.attempts = attempt + lost
                self._unexpected = 0
                return record, rows
            except OutputError:  # of this job, not of the unit
                raise
            except Exception as problem:
                if isinstance(problem, _StoppedError):
                    raise
                error, saved = problem, None
                self._log.write("attempt failed", unit=unit.name, error=type(error).__name__, reason=str(error)[:500])
                self._poll()
        record = self._failure(unit, error, ATTEMPTS + lost, begun)
        if not isinstance(error, RefervosError):
            self._unexpected += 1
            if self._unexpected >= _UNEXPECTED_LIMIT:
                raise EvaluationError(
                    f"{self._unexpected} videos in a row failed in the model ({record.reason}); check the model and "
                    "the device."
                ) from error
        return record, MaskRows()

    def _failure(self, unit: Unit, error: Exception, attempts: int, begun: float) -> UnitRecord:
        sentence = str(error) if isinstance(error, RefervosError) else " ".join(str(error).split())[:500]
        kind = type(error).__name__
        return self._record(unit, "failed", begun, error=kind, reason=sentence or kind, attempts=attempts)

    def _record(self, unit: Unit, status: str, begun: float, **more: Any) -> UnitRecord:
        seconds = round(time.monotonic() - begun, 3)
        return UnitRecord(unit.name, status, seconds=seconds, host=socket.gethostname(), worker=self.name, **more)

    def _attempt(self, unit: Unit, saved: SavedUnit | None) -> tuple[UnitRecord, MaskRows]:
        options = self._job.options
        begun = time.monotonic() - (saved.seconds if saved else 0.0)
        if saved is None or saved.session is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnknownWordsWarning)  # given once, when the work is planned
                session = self._model.open(  # type: ignore[attr-defined]
                    unit.expressions,
                    on_cut=options.on_cut,
                    on_repeat=options.on_repeat,
                    borders=options.borders,
                    border_cells=7,
                )
            rows, following = MaskRows(), unit.start
        else:
            session, rows, following = saved.session, saved.rows, saved.frame
        last_saved = time.monotonic()
        state = _Position(following)

        @contextmanager
        def clip() -> Iterator[None]:
            """At its end, session and rows are at the same frame."""
            nonlocal last_saved
            yield
            self._poll()
            if time.monotonic() - last_saved >= self._settings.save_every:
                self._save(unit, session, rows, state.frame, begun)
                last_saved = time.monotonic()

        frames = self._decoder.frames(
            unit.uri,
            following,
            unit.end,
            version=unit.version,
            patience=self._settings.timeout,
            total=_TIMES_EXPECTED * unit.work,
            resumed=following > unit.start,
        )
        hold: Callable[[], AbstractContextManager[None]] = clip
        try:
            for frame, segmentation in segment_frames(frames, session, options.clip, hold):
                rows.add(frame, segmentation)
                state.frame = frame.index + 1
                self._log.frames += 1
        except _StoppedError:
            if len(rows):
                self._save(unit, session, rows, state.frame, begun)
            raise
        finally:
            frames.close()  # type: ignore[attr-defined]
        count = len(rows) // len(unit.expressions)
        return self._record(unit, "ok", begun, warnings=self._decoder.warnings, frames=count), rows

    def _save(self, unit: Unit, session: Any, rows: MaskRows, frame: int, begun: float) -> None:
        save_unit(self._store, unit.name, SavedUnit(rows, frame, round(time.monotonic() - begun, 3), session))


@dataclass
class _Position:
    """Frame to segment next."""

    frame: int


class StopFlag(AbstractContextManager["StopFlag"]):
    """Flag set by SIGTERM (Slurm, ``docker stop``), and by Ctrl-C if wanted; a second Ctrl-C has its default effect.

    Attributes:
        received: The signal, or None.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self.received: int | None = None
        self._signals = signals or (signal.SIGTERM, signal.SIGINT)
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Return whether a signal was received."""
        return self.received is not None

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._before = {number: signal.signal(number, self._handle) for number in self._signals}
        return self

    def _handle(self, number: int, _: object) -> None:
        self.received = number
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def worker_command(address: str, settings: WorkerSettings) -> list[str]:
    """Return the command of a worker process, which ends when its standard input is closed."""
    return [sys.executable, "-m", "refervos.batch.worker", address, json.dumps(asdict(settings))]


def main() -> None:
    """Run a worker process."""
    address, text = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    given = json.loads(text)
    settings = WorkerSettings(**{**given, "part": tuple(given["part"])})
    try:
        with StopFlag(signal.SIGTERM) as stop:
            Worker(Job.open(open_store(address)), settings, stop).run()
        code = STOPPED if stop.received is not None else 0
    except RefervosError as error:
        print(f"refervos: {error}", file=sys.stderr, flush=True)
        code = 2
    sys.exit(code)


def _end_with_parent() -> None:
    while os.read(0, 1):  # not through a buffer, which a thread must not hold when Python ends
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
