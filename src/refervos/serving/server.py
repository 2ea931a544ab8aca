"""State of a running server: its videos, sessions and jobs, and the models they share."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refervos.serving.alerts import WebhookRules, WebhookSender
from refervos.serving.guard import AccessRules
from refervos.serving.jobs import JobQueue
from refervos.serving.limits import Limits
from refervos.serving.questions import Talks
from refervos.serving.registry import SessionRegistry
from refervos.serving.samples import Samples
from refervos.serving.shared_model import SharedModel
from refervos.serving.source_rules import SourceRules
from refervos.serving.videos import VideoStore


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        folder: Folder for videos and sessions, which survive a restart; None for a temporary one.
        limits: Limits of the server.
        access: Who may use it.
        sources: Which sources beside uploads may be opened.
        webhooks: Addresses to which alerts may be posted.
        page: Folder with the files of a page to serve at ``/``; None for none.
        label_studio: Folder with the media of Label Studio, whose backend is then served at ``/label-studio``.
    """

    folder: Path | None = None
    limits: Limits = field(default_factory=Limits)
    access: AccessRules = field(default_factory=AccessRules)
    sources: SourceRules = field(default_factory=SourceRules)
    webhooks: WebhookRules = field(default_factory=WebhookRules)
    page: Path | None = None
    label_studio: Path | None = None


class Server:
    """State of a running server.

    Args:
        models: The loaded models by name; the first is the default.
        settings: Its settings.
        samples: Clips that can be opened without an upload.
    """

    def __init__(self, models: dict[str, Any], settings: ServerSettings, samples: Samples) -> None:
        self.settings, self.samples = settings, samples
        self._temporary = None if settings.folder else Path(tempfile.mkdtemp(prefix="refervos-"))
        folder = settings.folder or self._temporary
        assert folder is not None
        limits = settings.limits
        self.models = {name: SharedModel(model) for name, model in models.items()}
        self.webhooks = WebhookSender()
        self.videos = VideoStore(folder / "videos", limits)
        self.sessions = SessionRegistry(
            folder / "sessions", self.models, self.videos, settings.sources, limits, self.webhooks
        )
        self.jobs = JobQueue(folder / "jobs", limits)
        self.talks = Talks(limits)

    def model(self, name: str | None) -> SharedModel:
        """Return a model by name, or the default.

        Raises:
            Problem: The server does not run it.
        """
        return self.models[self.sessions.model_name(name)]

    def close(self) -> None:
        """Save and free everything; a temporary folder is removed."""
        self.jobs.close()
        self.sessions.close()
        self.webhooks.close()
        for model in self.models.values():
            model.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
