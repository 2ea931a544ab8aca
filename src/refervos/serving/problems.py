"""Problems: errors as one sentence and a code, in the form of RFC 9457 (application/problem+json)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from refervos import errors
from refervos.errors import RefervosError, is_out_of_memory

MEDIA_TYPE = "application/problem+json"

_STATUS: Mapping[type[RefervosError], HTTPStatus] = {
    errors.MissingDependencyError: HTTPStatus.NOT_IMPLEMENTED,
    errors.CheckpointError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""Status of the errors that are not the client's; all others are 422."""


class Problem(RefervosError):
    """A request cannot be fulfilled.

    Args:
        status: HTTP status.
        code: Short machine-readable name of the problem, such as ``unknown-session``.
        sentence: One sentence for people.
        retry_after: Seconds after which the request may succeed, if any.
    """

    def __init__(self, status: HTTPStatus, code: str, sentence: str, *, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.code, self.retry_after = status, code, retry_after


_PATH = re.compile(r"'/(?:[^'/]*/)*([^'/]*)'")
"""An absolute path in quotes, of which clients see the last part only."""


def unknown(kind: str, name: str) -> Problem:
    """Return the problem of a name that does not exist, such as a session's id."""
    return Problem(HTTPStatus.NOT_FOUND, f"unknown-{kind}", f"there is no {kind} {name[:40]!r}.")


def as_problem(error: BaseException) -> Problem:
    """Describe an error for a client, without paths and without a traceback.

    Args:
        error: The error.

    Returns:
        The problem; an error that is not the input's fault becomes ``internal`` without details.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, RefervosError):
        status = next((found for kind, found in _STATUS.items() if isinstance(error, kind)), None)
        code = type(error).__name__.removesuffix("Error").lower()
        return Problem(status or HTTPStatus.UNPROCESSABLE_ENTITY, code, _PATH.sub(r"'\1'", str(error)))
    if is_out_of_memory(error):
        sentence = "the server has not enough memory for this request; use smaller frames or fewer sentences."
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "out-of-memory", sentence, retry_after=10)
    sentence = "the server failed on this request; its log has the reason."
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", sentence)


def problem_document(problem: Problem) -> dict[str, Any]:
    """Return a problem as the JSON document that clients receive."""
    return {
        "type": f"urn:refervos:problem:{problem.code}",
        "title": problem.status.phrase,
        "status": int(problem.status),
        "detail": str(problem),
        "code": problem.code,
    }
