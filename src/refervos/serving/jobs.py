"""Jobs: whole videos segmented or exported, one after another, with progress and cancellation; kept across restarts."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from refervos.errors import OutputError
from refervos.files.writing import write_atomically
from refervos.serving.limits import Limits
from refervos.serving.problems import Problem, as_problem, problem_document, unknown
from refervos.video import Frame

_LOG = logging.getLogger(__name__)
_MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".jsonl": "application/jsonl",
    ".zip": "application/zip",
    ".csv": "text/csv",
    ".xml": "application/xml",
    ".json": "application/json",
}

JobStatus = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]


class Cancelled(Exception):
    """The job was cancelled."""


@dataclass(frozen=True)
class Purpose:
    """What a job is for.

    Attributes:
        session: The session whose masks it writes; None if there is none.
        video: The video that it segments; None if there is none.
        outputs: The formats that it writes.
    """

    session: str | None = None
    video: str | None = None
    outputs: Sequence[str] = ()


@dataclass
class Job:
    """One job.

    Attributes:
        id: Random identifier.
        folder: Folder of its results.
        purpose: What it is for.
        total: Number of frames, if known.
        created: When it was queued, in seconds since 1970.
        status: Where it stands; ``interrupted`` if the server stopped before it was over.
        done: Number of frames done.
        files: Names of the files written.
        problem: Why it failed, as the document that clients receive.
    """

    id: str
    folder: Path
    purpose: Purpose = Purpose()
    total: int | None = None
    created: float = field(default_factory=time.time)
    status: JobStatus = "queued"
    done: int = 0
    files: list[str] = field(default_factory=list)
    problem: dict[str, Any] | None = None
    _listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=list)
    _cancelled: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more happens."""
        return self.status not in ("queued", "running")

    def describe(self) -> dict[str, Any]:
        """Describe the job as JSON."""
        return {
            "id": self.id,
            "session": self.purpose.session,
            "video": self.purpose.video,
            "outputs": list(self.purpose.outputs),
            "created": self.created,
            "status": self.status,
            "done": self.done,
            "total": self.total,
            "files": list(self.files),
            "problem": self.problem,
        }

    def advance(self, _: Frame | None = None) -> None:
        """Count a frame.

        Raises:
            Cancelled: When the job was cancelled.
        """
        self.done += 1
        self.notify()
        self.check()

    def check(self) -> None:
        """Stop here if the job was cancelled.

        Raises:
            Cancelled: When it was.
        """
        if self._cancelled:
            raise Cancelled

    def cancel(self) -> None:
        """Ask the job to stop after the current frame."""
        self._cancelled = True

    def notify(self) -> None:
        """Wake everybody who follows the job."""
        for loop, event in list(self._listeners):
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # the server is stopping
                continue

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the description of the job now and after changes, until it is over."""
        event = asyncio.Event()
        listener = (asyncio.get_running_loop(), event)
        self._listeners.append(listener)
        try:
            while True:
                event.clear()
                over = self.over
                yield self.describe()
                if over:
                    return
                await event.wait()
                await asyncio.sleep(0.1)  # a few messages a second are enough
        finally:
            self._listeners.remove(listener)


Work = Callable[[Job], list[Path]]
"""What a job does: it writes to the job's folder, calls ``advance`` after each frame, and returns the files."""


class JobQueue:
    """Runs jobs one after another in a thread, and keeps the results of the last ones.

    Args:
        folder: Folder of the results. Jobs that an earlier process finished there are known again; those that it did
            not finish are ``interrupted``, and what they had written is removed.
        limits: Limits of the server.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limits = folder, limits
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {job.id: job for job in read_jobs(folder)}
        self._waiting: deque[tuple[Job, Work]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait."""
        return len(self._waiting)

    def submit(self, work: Work, total: int | None = None, purpose: Purpose | None = None) -> Job:
        """Queue a job.

        Args:
            work: What it does.
            total: Number of frames, if known.
            purpose: What it is for.

        Returns:
            The job.

        Raises:
            Problem: Too many jobs wait.
            OutputError: The job cannot be written down.
        """
        with self._changed:
            if len(self._waiting) >= self._limits.jobs:
                sentence = f"{len(self._waiting)} jobs wait already, which is the limit; try again later."
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", sentence, retry_after=30)
            name = secrets.token_hex(16)
            job = Job(name, self._folder / name, purpose or Purpose(), total)
            _write_job(job)
            self._jobs[name] = job
            self._waiting.append((job, work))
            self._forget_oldest()
            self._changed.notify_all()
        return job

    def get(self, job: str) -> Job:
        """Return a job.

        Raises:
            Problem: There is none of that id.
        """
        with self._changed:
            if job not in self._jobs:
                raise unknown("job", job)
            return self._jobs[job]

    def of(self, *, session: str | None = None, video: str | None = None) -> list[Job]:
        """Return the jobs about a session or a video, newest first."""
        with self._changed:
            jobs = [job for job in self._jobs.values() if (job.purpose.session, job.purpose.video) == (session, video)]
        return sorted(jobs, key=lambda job: job.created, reverse=True)

    def file(self, job: str, name: str) -> tuple[Path, str]:
        """Return the path and the media type of a job's file.

        Raises:
            Problem: There is no such job or file.
        """
        found = self.get(job)
        if name not in found.files:
            raise unknown("file", name)
        path = found.folder / name
        return path, _MEDIA_TYPES.get(path.suffix, "application/octet-stream")

    def remove(self, job: str) -> None:
        """Cancel a job, or delete the results of one that is over.

        Raises:
            Problem: There is none of that id.
        """
        found = self.get(job)
        found.cancel()
        with self._changed:
            for entry in [entry for entry in self._waiting if entry[0] is found]:
                self._waiting.remove(entry)
                found.status = "cancelled"
            if found.over:
                self._jobs.pop(job, None)
                _delete(found)
        found.notify()

    def close(self) -> None:
        """Stop all jobs, which are ``interrupted`` for the next process, and end the thread."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.cancel()
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job, work = self._waiting.popleft()
                job.status = "running"
            job.notify()
            try:
                job.folder.mkdir()
                job.check()
                job.files = [path.name for path in work(job)]
                job.status = "done"
                _write_job(job)
            except Cancelled:
                if self._closed:
                    job.status = "interrupted"  # its file still has it as queued, which the next process reads
                else:
                    job.status = "cancelled"
                    _delete(job)
            except Exception as error:
                self._fail(job, error)
            job.notify()

    def _fail(self, job: Job, error: Exception) -> None:
        problem = as_problem(error)
        if problem.code == "internal":
            _LOG.exception("job %s failed", job.id)
        job.problem, job.files, job.status = problem_document(problem), [], "failed"
        shutil.rmtree(job.folder, ignore_errors=True)
        try:
            _write_job(job)
        except OutputError:
            _LOG.exception("job %s cannot be written down", job.id)

    def _forget_oldest(self) -> None:
        """Delete the results of the oldest jobs beyond the limit."""
        over = [job for job in self._jobs.values() if job.over]
        for job in over[: max(0, len(over) - self._limits.jobs)]:
            del self._jobs[job.id]
            _delete(job)


def read_jobs(folder: Path) -> list[Job]:
    """Read the jobs of an earlier process, oldest first, and remove what belongs to none of them.

    Args:
        folder: Folder of a ``JobQueue``.

    Returns:
        The jobs, all of which are over.
    """
    found: list[Job] = []
    for record in folder.glob("*.json"):
        try:
            values = json.loads(record.read_bytes())
            purpose = Purpose(**values.pop("purpose"))
            job = Job(folder=folder / record.stem, purpose=purpose, **values)
        except (OSError, ValueError, TypeError, KeyError):
            _LOG.warning("the record of job %s cannot be read; the job is removed", record.stem)
            continue
        if not job.over or not all((job.folder / name).is_file() for name in job.files):
            sentence = "the server stopped before this job was finished; start it again."
            problem = Problem(HTTPStatus.SERVICE_UNAVAILABLE, "interrupted", sentence)
            job.status, job.files, job.problem = "interrupted", [], problem_document(problem)
        found.append(job)
    known = {job.id for job in found}
    complete = {job.folder.name for job in found if job.status == "done"}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in complete:
            shutil.rmtree(path, ignore_errors=True)
        elif not path.is_dir() and path.stem not in known:
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda job: job.created)


def _record_of(job: Job) -> Path:
    return job.folder.with_name(f"{job.folder.name}.json")


def _write_job(job: Job) -> None:
    """Write down what a job is and where it stands, for the next process."""
    names = ("id", "total", "created", "status", "done", "files", "problem")
    content = {"purpose": asdict(job.purpose), **{name: getattr(job, name) for name in names}}
    write_atomically(_record_of(job), json.dumps(content).encode())


def _delete(job: Job) -> None:
    """Delete the results and the record of a job."""
    _record_of(job).unlink(missing_ok=True)
    shutil.rmtree(job.folder, ignore_errors=True)
