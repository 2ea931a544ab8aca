"""Commands of the WebSocket: their fields with types and bounds, and what they do to a session."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from refervos.serving.problems import Problem
from refervos.serving.served_session import ServedSession

TrackNumber = Annotated[int, Field(ge=0, le=10**6)]
FrameNumber = Annotated[int, Field(ge=0, le=10**9)]
Sentence = Annotated[str, Field(min_length=1, max_length=2000)]
Byte = Annotated[int, Field(ge=0, le=255)]
Coordinate = Annotated[float, Field(allow_inf_nan=False)]
Click = tuple[Coordinate, Coordinate, Literal[0, 1]]
Box = tuple[Coordinate, Coordinate, Coordinate, Coordinate]


class Command(BaseModel):
    """A command; ``n`` comes back with its reply."""

    model_config = ConfigDict(extra="forbid", strict=False)
    n: Annotated[int, Field(ge=0, le=2**53)]

    def run(self, session: ServedSession) -> Any:
        """Carry out the command, in the session's thread."""
        arguments = {name: value for name, value in self if name not in ("n", "do")}
        return getattr(session, self.do)(**arguments)  # type: ignore[attr-defined]


class Add(Command):
    """Follow one more object, from the next frame on or from an earlier one; the reply has its ``track``."""

    do: Literal["add"]
    expression: Sentence
    frame: FrameNumber | None = None


class Drop(Command):
    """Stop following an object."""

    do: Literal["drop"]
    track: TrackNumber


class SetPrompt(Command):
    """Replace a track's sentence from the next frame on."""

    do: Literal["set_prompt"]
    track: TrackNumber
    expression: Sentence


class Rename(Command):
    """Change the name under which a track is shown."""

    do: Literal["rename"]
    track: TrackNumber
    label: Annotated[str, Field(min_length=1, max_length=200)]


class Show(Command):
    """Show or hide a track, and change its colour if one is given."""

    do: Literal["show"]
    track: TrackNumber
    visible: bool
    colour: tuple[Byte, Byte, Byte] | None = None


class Correct(Command):
    """Correct a track's mask in a frame by clicks or a box, in pixels of the video."""

    do: Literal["correct"]
    track: TrackNumber
    frame: FrameNumber
    points: Annotated[list[Click], Field(max_length=64)] = []
    box: Box | None = None


class Undo(Command):
    """Undo the correction of a track that was made last."""

    do: Literal["undo"]
    track: TrackNumber


class Play(Command):
    """Advance by itself: as fast as the model, or at a multiple of the source's own rate."""

    do: Literal["play"]
    speed: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None


class Pause(Command):
    """Stop advancing."""

    do: Literal["pause"]


class Step(Command):
    """Advance by a number of frames, or to a frame, then pause."""

    do: Literal["step"]
    frames: Annotated[int, Field(ge=1, le=1000)] = 1
    to: FrameNumber | None = None


class Seek(Command):
    """Go to a frame."""

    do: Literal["seek"]
    frame: FrameNumber


class Range(Command):
    """Set the first and the last frame to segment."""

    do: Literal["range"]
    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    first: Annotated[int, Field(alias="in", ge=0, le=10**9)] = 0
    last: Annotated[int | None, Field(alias="out", ge=0, le=10**9)] = None


class SetAlert(Command):
    """Raise an event when a track's presence is above or below a threshold for some frames."""

    do: Literal["alert"]
    track: TrackNumber
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    when: Literal["above", "below"] = "above"
    frames: Annotated[int, Field(ge=1, le=100_000)] = 1


class ClearAlerts(Command):
    """Remove the alerts of a track, one alert by its position in the state, or without either all of them."""

    do: Literal["clear_alerts"]
    track: TrackNumber | None = None
    alert: Annotated[int, Field(ge=0, le=10**6)] | None = None


class Record(Command):
    """Begin or stop to keep the pictures of a live source for exports."""

    do: Literal["record"]
    on: bool

    def run(self, session: ServedSession) -> Any:
        """Carry out the command, in the session's thread."""
        return session.record_pictures(self.on)


class Ack(BaseModel):
    """Acknowledge a frame; it has no reply."""

    do: Literal["ack"]
    n: Annotated[int, Field(ge=0, le=2**53)] | None = None
    frame: FrameNumber


AnyCommand = Annotated[
    Add
    | Drop
    | SetPrompt
    | Rename
    | Show
    | Correct
    | Undo
    | Play
    | Pause
    | Step
    | Seek
    | Range
    | SetAlert
    | ClearAlerts
    | Record
    | Ack,
    Field(discriminator="do"),
]
_ADAPTER: TypeAdapter[Command | Ack] = TypeAdapter(AnyCommand)


def parse_command(text: str) -> tuple[int | None, Command | Ack | Problem]:
    """Parse a text message.

    Args:
        text: The message.

    Returns:
        Its number ``n``, if it has one, and the command, or the problem with it.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None, malformed("the message is not JSON.")
    number = content.get("n") if isinstance(content, dict) else None
    number = number if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= 2**53 else None
    try:
        return number, _ADAPTER.validate_python(content)
    except ValidationError as error:
        return number, malformed(sentence_of(error))
    except RecursionError:
        return number, malformed("the message is nested too deeply.")


def malformed(sentence: str) -> Problem:
    """Return the problem of a request whose content has another form."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "malformed", sentence)


def sentence_of(error: ValidationError) -> str:
    """Describe the first fault of a validation in one sentence."""
    return fault_sentence(error.errors(include_url=False, include_context=False, include_input=False))


def fault_sentence(faults: Any) -> str:
    """Describe the first of pydantic's faults in one sentence.

    Args:
        faults: What ``errors()`` of a validation error returns.

    Returns:
        The field and what is wrong with it.
    """
    first = faults[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")[:100]
    message = str(first["msg"])[:300].rstrip(".")
    return f"{place or 'the content'}: {message[0].lower()}{message[1:]}."


def running(command: Command, session: ServedSession) -> Callable[[], Any]:
    """Bind a command to a session, for its queue."""
    return lambda: command.run(session)
