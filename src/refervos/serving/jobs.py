"""Jobs: whole videos segmented or exported, one after another, with progress and cancellation."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

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

JobStatus = Literal["queued", "running", "done", "failed", "cancelled"]


class Cancelled(Exception):
    """The job was cancelled."""


@dataclass
class Job:
    """One job.

    Attributes:
        id: Random identifier.
        folder: Folder of its results.
        work: What it does: writes to the folder, calls ``advance`` after each frame, and returns the files.
        total: Number of frames, if known.
        status: Where it stands.
        done: Number of frames done.
        files: Names of the files written.
        problem: Why it failed.
    """

    id: str
    folder: Path
    work: Callable[[Job], list[Path]]
    total: int | None = None
    status: JobStatus = "queued"
    done: int = 0
    files: list[str] = field(default_factory=list)
    problem: Problem | None = None
    _listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=list)
    _cancelled: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more happens."""
        return self.status in ("done", "failed", "cancelled")

    def describe(self) -> dict[str, Any]:
        """Describe the job as JSON."""
        return {
            "id": self.id,
            "status": self.status,
            "done": self.done,
            "total": self.total,
            "files": list(self.files),
            "problem": None if self.problem is None else problem_document(self.problem),
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


class JobQueue:
    """Runs jobs one after another in a thread, and keeps the results of the last ones.

    Args:
        folder: Folder of the results; what an earlier process left there is removed.
        limits: Limits of the server.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder, self._limits = folder, limits
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait."""
        return len(self._waiting)

    def submit(self, work: Callable[[Job], list[Path]], total: int | None = None) -> Job:
        """Queue a job.

        Args:
            work: See ``Job``.
            total: Number of frames, if known.

        Returns:
            The job.

        Raises:
            Problem: Too many jobs wait.
        """
        with self._changed:
            if len(self._waiting) >= self._limits.jobs:
                sentence = f"{len(self._waiting)} jobs wait already, which is the limit; try again later."
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "busy", sentence, retry_after=30)
            name = secrets.token_hex(16)
            job = Job(name, self._folder / name, work, total)
            self._jobs[name] = job
            self._waiting.append(job)
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
            if found in self._waiting:
                self._waiting.remove(found)
                found.status = "cancelled"
            if found.over:
                self._jobs.pop(job, None)
                shutil.rmtree(found.folder, ignore_errors=True)
        found.notify()

    def close(self) -> None:
        """Cancel all jobs and end the thread."""
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
                job = self._waiting.popleft()
                job.status = "running"
            job.notify()
            try:
                job.folder.mkdir()
                job.check()
                job.files = [path.name for path in job.work(job)]
                job.status = "done"
            except Cancelled:
                job.status = "cancelled"
                shutil.rmtree(job.folder, ignore_errors=True)
            except Exception as error:
                if as_problem(error).code == "internal":
                    _LOG.exception("job %s failed", job.id)
                job.problem, job.status = as_problem(error), "failed"
                shutil.rmtree(job.folder, ignore_errors=True)
            job.notify()

    def _forget_oldest(self) -> None:
        """Delete the results of the oldest jobs beyond the limit."""
        over = [job for job in self._jobs.values() if job.over]
        for job in over[: max(0, len(over) - self._limits.jobs)]:
            del self._jobs[job.id]
            shutil.rmtree(job.folder, ignore_errors=True)
