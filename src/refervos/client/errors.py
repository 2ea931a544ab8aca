"""The error of the client."""

from __future__ import annotations

from refervos.errors import RefervosError


class ServerError(RefervosError):
    """The server refused a request, or cannot be reached.

    Args:
        sentence: What is wrong.
        code: Machine-readable name of the problem; empty if the server did not answer.
    """

    def __init__(self, sentence: str, code: str = "") -> None:
        super().__init__(sentence)
        self.code = code
