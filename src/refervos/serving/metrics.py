"""Measurements of the server in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from refervos.serving.application import Server

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _ServerCollector:
    """Reads the state of a server whenever it is asked for; the server itself counts nothing twice."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Any]:
        """Yield the measurements."""
        server = self._server
        sessions = server.sessions.open_sessions
        yield GaugeMetricFamily("refervos_sessions_open", "Sessions in memory", len(sessions))
        yield GaugeMetricFamily("refervos_sessions_running", "Sessions that advance", sum(s.running for s in sessions))
        viewers = sum(session.viewer_count for session in sessions)
        yield GaugeMetricFamily("refervos_viewers", "Open WebSocket connections", viewers)
        yield GaugeMetricFamily("refervos_jobs_waiting", "Jobs that wait", server.jobs.waiting)
        yield CounterMetricFamily("refervos_frames", "Frames segmented in sessions", server.sessions.frames)
        yield CounterMetricFamily("refervos_webhooks_failed", "Events not delivered", server.webhooks.failed)
        clips = CounterMetricFamily("refervos_clips", "Clips that went through a model", labels=["model"])
        batches = CounterMetricFamily("refervos_batches", "Calls of a model for them", labels=["model"])
        for name, model in server.models.items():
            clips.add_metric([name], model.clips)
            batches.add_metric([name], model.batches)
        yield clips
        yield batches


def metrics_text(server: Server) -> bytes:
    """Return the measurements of a server as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ServerCollector(server))
    return generate_latest(registry)
