"""Alerts: a sentence's presence above or below a threshold for some frames raises an event, which may be posted on."""

from __future__ import annotations

import json
import logging
import queue
import threading
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from refervos.serving.problems import Problem
from refervos.video.addresses import described

_LOG = logging.getLogger(__name__)
_WAITING = 1000
"""Number of webhook messages that wait; further ones are dropped and counted."""


@dataclass
class Alert:
    """One rule.

    Attributes:
        track: Number of the track.
        threshold: Presence to compare with, 0 to 1.
        when: Whether to raise the event above or below the threshold.
        frames: Number of consecutive frames for which the condition must hold.
        webhook: Address to post the event to.
        held: For how many frames the condition has held so far.
    """

    track: int
    threshold: float = 0.5
    when: Literal["above", "below"] = "above"
    frames: int = 1
    webhook: str | None = None
    held: int = 0

    def update(self, presence: float) -> bool:
        """Take the presence in the next frame into account.

        Args:
            presence: 0 to 1.

        Returns:
            Whether the event is raised now: once, until the condition has not held in between.
        """
        holds = presence > self.threshold if self.when == "above" else presence < self.threshold
        self.held = self.held + 1 if holds else 0
        return self.held == self.frames


def append_line(path: Path, event: dict[str, Any]) -> None:
    """Append an event to a file of JSON lines."""
    with path.open("ab") as file:
        file.write(json.dumps(event).encode() + b"\n")


@dataclass(frozen=True)
class WebhookRules:
    """Addresses to which events may be posted.

    Attributes:
        allowed: Addresses that the operator configured; an event may be posted to them and to what begins with them.
    """

    allowed: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """Return scheme and host of each address; the rest may be a secret."""
        return [described(each).strip("'") for each in self.allowed]

    def find(self, wanted: str | int) -> str:
        """Return an address that may be used.

        Args:
            wanted: The address, or the position of one of the allowed addresses.

        Raises:
            Problem: The operator has not allowed it.
        """
        if isinstance(wanted, int):
            if wanted < len(self.allowed):
                return self.allowed[wanted]
            raise _forbidden()
        return self._check(wanted)

    def _check(self, address: str) -> str:
        try:
            wanted = urlsplit(address)
        except ValueError:
            raise _forbidden() from None
        for each in self.allowed:
            base = urlsplit(each)
            same = (wanted.scheme, wanted.netloc) == (base.scheme, base.netloc)
            if same and wanted.scheme in ("http", "https") and _is_below(wanted.path, base.path):
                return address
        raise _forbidden()


def _forbidden() -> Problem:
    sentence = "this webhook is not allowed; the operator allows addresses with --allow-webhook."
    return Problem(HTTPStatus.FORBIDDEN, "forbidden-webhook", sentence)


def _is_below(path: str, base: str) -> bool:
    """Whether a path is another one, or below it, without steps upwards."""
    parts, above = path.strip("/").split("/"), base.strip("/").split("/")
    if ".." in parts:
        return False
    return above == [""] or parts[: len(above)] == above


class WebhookSender:
    """Posts events in a thread of its own, without following redirects.

    Attributes:
        failed: Number of events that could not be delivered, or were dropped.
    """

    def __init__(self) -> None:
        self.failed = 0
        self._queue: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None

    def send(self, address: str, event: dict[str, Any]) -> None:
        """Queue an event.

        Args:
            address: Address that ``WebhookRules`` allows.
            event: The event, posted as JSON.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait((address, event))
        except queue.Full:
            self.failed += 1

    def close(self) -> None:
        """Deliver what waits, and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(10)

    def _run(self) -> None:
        import httpx

        # The environment's proxies are not used: the operator allowed this address and no other.
        with httpx.Client(follow_redirects=False, timeout=5, trust_env=False) as client:
            while (item := self._queue.get()) is not None:
                try:
                    client.post(item[0], json=item[1]).raise_for_status()
                except httpx.HTTPError as error:
                    self.failed += 1
                    _LOG.warning("a webhook was not delivered (%s)", type(error).__name__)
