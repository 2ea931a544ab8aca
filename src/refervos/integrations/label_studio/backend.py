"""Label Studio's machine learning backend: the routes that it calls for predictions.

The protocol is that of ``label_studio_ml/api.py`` of https://github.com/HumanSignal/label-studio-ml-backend:
``/health``, ``/setup``, ``/predict`` and ``/webhook``. The labels of a project are the sentences.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from refervos.errors import DataError, RefervosError, require_installed
from refervos.integrations.label_studio.label_config import LabelConfig, read_label_config
from refervos.integrations.label_studio.results import brush_results, video_results
from refervos.pipeline import segment_frames
from refervos.prompts import Prompt
from refervos.segmentation import Segmentation
from refervos.video import Frame, open_source

if TYPE_CHECKING:
    from fastapi import APIRouter

MAX_FRAMES = 2000
"""Longest video in frames: Label Studio waits 100 seconds for an answer by default."""


def label_studio_router(
    model: Any, media: str | Path, *, version: str = "refervos", max_frames: int = MAX_FRAMES
) -> APIRouter:
    """Create the routes of the backend, for any FastAPI application.

    Args:
        model: A model that follows sentences.
        media: Folder with the media of Label Studio: its own media folder (with ``upload``), or the root of its local
            storage. Nothing else is read, and nothing is fetched.
        version: Version of the model that Label Studio shows beside its predictions.
        max_frames: Longest video in frames.

    Returns:
        ``GET /health``, ``POST /setup``, ``POST /predict`` and ``POST /webhook``; include it with a prefix of its own.

    Raises:
        MissingDependencyError: FastAPI or defusedxml is not installed.
    """
    require_installed("the backend of Label Studio", "labelstudio", "fastapi", "defusedxml")
    from fastapi import APIRouter
    from fastapi.responses import JSONResponse

    backend = Backend(model, Path(media), version, max_frames)
    router = APIRouter(tags=["Label Studio"])

    def answer(compute: Callable[[], Any]) -> Any:
        """Answer with a result, or with the sentence of an error."""
        try:
            return compute()
        except RefervosError as error:
            busy = isinstance(error, BusyError)
            status = HTTPStatus.SERVICE_UNAVAILABLE if busy else HTTPStatus.UNPROCESSABLE_ENTITY
            problem = {"title": status.phrase, "status": int(status), "detail": str(error)}
            headers = {"Retry-After": "10"} if busy else {}
            return JSONResponse(problem, int(status), headers, media_type="application/problem+json")

    @router.get("/health", summary="Say that the backend is ready")
    def health() -> dict[str, Any]:
        return {"status": "UP", "model_class": type(model).__name__}

    @router.post("/setup", summary="Check the labelling configuration of a project")
    def setup(request: dict[str, Any]) -> Any:
        return answer(lambda: backend.set_up(request))

    @router.post("/predict", summary="Segment the image or the video of each task")
    def predict(request: dict[str, Any]) -> Any:
        return answer(lambda: backend.predict(request))

    @router.post("/webhook", status_code=201, summary="Acknowledge an event of a project; nothing is trained")
    def webhook(request: dict[str, Any]) -> dict[str, str]:
        return {"status": "ok"}

    return router


class BusyError(RefervosError):
    """Another prediction is being computed."""


class Backend:
    """Answers of the backend, one prediction at a time.

    Args:
        model: A model that follows sentences.
        media: Folder with the media of Label Studio.
        version: Version of the model.
        max_frames: Longest video in frames.
    """

    def __init__(self, model: Any, media: Path, version: str, max_frames: int) -> None:
        self._model, self._media = model, media.resolve()
        self._version, self._max_frames = version, max_frames
        self._lock = threading.Lock()

    def set_up(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Check the labelling configuration of a project, if the request has one.

        Args:
            request: Label Studio's request; the configuration is its ``schema``.

        Returns:
            The version of the model.

        Raises:
            DataError: The configuration has no sentences to follow.
            PromptError: The model does not accept one of them.
        """
        if request.get("schema"):
            for sentence in read_label_config(str(request["schema"])).sentences:
                self._model.begin(Prompt(sentence))
        return {"model_version": self._version}

    def predict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Segment the image or the video of each task.

        Args:
            request: Label Studio's request, with ``tasks`` and ``label_config``.

        Returns:
            ``results``, a prediction for each task.

        Raises:
            BusyError: Another prediction is being computed.
            DataError: The request or the configuration is malformed, or a task has no readable image or video.
            PromptError: The model does not accept a sentence.
            VideoError: An image or video cannot be decoded.
        """
        tasks, text = request.get("tasks"), request.get("label_config")
        if not isinstance(tasks, list) or not isinstance(text, str):
            raise DataError("a request for predictions must have a list 'tasks' and a text 'label_config'.")
        config = read_label_config(text)
        if not self._lock.acquire(blocking=False):
            raise BusyError("another prediction is being computed; ask again in a moment.")
        try:
            return {"results": [self._prediction(task, config) for task in tasks]}
        finally:
            self._lock.release()

    def _prediction(self, task: Any, config: LabelConfig) -> dict[str, Any]:
        data = task.get("data") if isinstance(task, dict) else None
        address = data.get(config.field) if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(address, str):
            raise DataError(f"a task must have the address of its {config.kind} in data.{config.field}.")
        file = self._file(address)
        rate = config.frame_rate(data)
        session = self._model.open(config.sentences)
        with open_source(file) as source:
            pairs = segment_frames(source, session)
            if config.kind == "image":
                _, segmentation = next(pairs)
                result = brush_results(segmentation, from_name=config.from_name, to_name=config.to_name)
            else:
                limited = self._limited(pairs, source.info.frame_count, address)
                result = video_results(limited, from_name=config.from_name, to_name=config.to_name, frame_rate=rate)
        scores = [each["score"] or 0.0 for each in result]
        score = sum(scores) / len(scores) if scores else 0.0
        return {"model_version": self._version, "score": round(score, 6), "result": result}

    def _limited(
        self, pairs: Iterator[tuple[Frame, Segmentation]], count: int | None, address: str
    ) -> Iterator[tuple[Frame, Segmentation]]:
        """Yield the frames of a video; raise if there are too many."""
        refusal = DataError(
            f"{address!r} has more than {self._max_frames} frames; cut it, or segment it with a command."
        )
        if count is not None and count > self._max_frames:
            raise refusal
        for position, pair in enumerate(pairs):
            if position == self._max_frames:
                raise refusal
            yield pair

    def _file(self, address: str) -> Path:
        """Return the file of an address of Label Studio, ``/data/upload/...`` or ``/data/local-files/?d=...``."""
        try:
            parts = urlsplit(address)
            inside = unquote(parts.path).removeprefix("/data/")
            if inside.rstrip("/") == "local-files":
                inside = parse_qs(parts.query).get("d", [""])[0]
            file = (self._media / inside.lstrip("/")).resolve()
            if parts.path.startswith("/data/") and file.is_relative_to(self._media) and file.is_file():
                return file
        except (OSError, ValueError):
            pass
        raise DataError(
            f"{address!r} is no file in the folder of media; the backend reads /data/upload/... and /data/local-files/ "
            "from that folder, and fetches nothing."
        )
