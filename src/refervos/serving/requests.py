"""Bodies of requests: their fields with types and bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from refervos.serving.commands import Byte, FrameNumber, Sentence, TrackNumber
from refervos.serving.outputs import OutputFormat
from refervos.video.effects import Effect

Identifier = Annotated[str, Field(max_length=64)]


class Content(BaseModel):
    """Base class of bodies; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class VideoSource(Content):
    """An uploaded video."""

    video: Identifier


class CameraSource(Content):
    """A camera of the server."""

    camera: Identifier


class UrlSource(Content):
    """A stream on the network."""

    url: Annotated[str, Field(max_length=2000)]


class WebcamSource(Content):
    """The webcam of the viewer's browser."""

    webcam: Literal[True]


class SessionRequest(Content):
    """What a new session shall do."""

    source: VideoSource | CameraSource | UrlSource | WebcamSource
    expressions: Annotated[list[Sentence], Field(max_length=256)] = []
    model: Annotated[str, Field(max_length=200)] | None = None


class TokenRequest(Content):
    """A token, to be kept as a cookie."""

    token: Annotated[str, Field(max_length=500)]


class VideoRequest(Content):
    """A video that is on the server already: a sample, or a file in an allowed folder."""

    sample: Annotated[str, Field(max_length=200)] | None = None
    path: Annotated[str, Field(max_length=4000)] | None = None


class EffectRequest(Content):
    """One effect; see ``refervos.video.effects``."""

    kind: Literal["colour", "outline", "blur", "pixelate", "spotlight", "cutout"]
    area: Literal["object", "background"] = "background"
    strength: Annotated[float, Field(ge=0, le=1)] = 0.5
    background: tuple[Byte, Byte, Byte] = (0, 0, 0)

    def effect(self) -> Effect:
        """Return the effect."""
        return Effect(self.kind, self.area, self.strength, self.background)


FrameRange = tuple[FrameNumber, FrameNumber | None]


class ExportRequest(Content):
    """What to write of a session: formats, the first and the last frame, effects of the overlay, and tracks."""

    format: OutputFormat
    range: FrameRange = (0, None)
    effects: Annotated[list[EffectRequest], Field(max_length=16)] = []
    tracks: Annotated[list[TrackNumber], Field(max_length=256)] | None = None


class JobRequest(Content):
    """A whole video to segment."""

    video: Identifier
    expressions: Annotated[list[Sentence], Field(min_length=1, max_length=256)]
    model: Annotated[str, Field(max_length=200)] | None = None
    outputs: Annotated[list[OutputFormat], Field(min_length=1, max_length=16)] = ["overlay", "rle"]
    range: FrameRange = (0, None)
    effects: Annotated[list[EffectRequest], Field(max_length=16)] = []


class AlertRequest(Content):
    """When to raise an event: a track's presence above or below a threshold for some frames.

    The webhook is an address, or the position of one that ``/v1/limits`` lists.
    """

    track: TrackNumber
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    when: Literal["above", "below"] = "above"
    frames: Annotated[int, Field(ge=1, le=100_000)] = 1
    webhook: Annotated[str, Field(max_length=2000)] | Annotated[int, Field(strict=True, ge=0)] | None = None


class QuestionRequest(Content):
    """A question about the video of a session."""

    question: Sentence
