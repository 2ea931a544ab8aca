"""A session as one file: a zip with what is known of it, its masks, its newest state and its video."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from refervos.data.files import decode_rle
from refervos.errors import RefervosError
from refervos.serving.history import Edit
from refervos.serving.limits import Limits
from refervos.serving.problems import Problem
from refervos.serving.served_session import MASKS_FILE, SESSION_FILE, ServedSession, SessionRecord
from refervos.serving.snapshots import Snapshot

_STATE, _VIDEO = "state.session", "video"
_MEMBERS = {SESSION_FILE, MASKS_FILE, _STATE, _VIDEO}
_LONGEST_JSON = 64 * 2**20
_LONGEST_LINE = 64 * 2**20
_PIECE = 1 << 20
_RECORD = TypeAdapter(SessionRecord)
_EDITS = TypeAdapter(list[Edit])


def write_archive(session: ServedSession, target: Path, video: Path | None) -> None:
    """Write a session as one file.

    Args:
        session: The session; saved in its own thread meanwhile.
        target: The file to write.
        video: The video to include; None to leave it out.

    Raises:
        RefervosError: The session cannot be saved.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        session.submit(lambda: _write_saved(session, archive)).result()
        if video is not None:
            archive.write(video, _VIDEO, zipfile.ZIP_STORED)


def _write_saved(session: ServedSession, archive: zipfile.ZipFile) -> None:
    """Write what the session saves; in the session's thread, so that the parts belong together."""
    session.save()
    content = json.loads((session.folder / SESSION_FILE).read_bytes())
    snapshots = content["snapshots"][-1:]
    if snapshots:
        archive.write(session.folder / snapshots[0]["file"], _STATE, zipfile.ZIP_STORED)
        snapshots = [{**snapshots[0], "file": "00000000.session"}]
    content |= {"snapshots": snapshots, "running": False}
    archive.writestr(SESSION_FILE, json.dumps(content))
    tracks = set(session.record.tracks)
    with archive.open(MASKS_FILE, "w") as file:
        for line in session.masks.lines(0, 10**9, tracks):
            file.write(json.dumps(line).encode() + b"\n")


def unpack_archive(
    source: Path, folder: Path, session: str, limits: Limits, place: Callable[[Path | None, Any], dict[str, Any]]
) -> SessionRecord:
    """Unpack a session from one file, which may come from anyone, and check every part of it.

    Args:
        source: The file.
        folder: Folder to unpack to; exists and is empty.
        session: Identifier that the session gets.
        limits: Limits of the server.
        place: Takes the video of the file, or None, and the source that the file names; returns the source to use.

    Returns:
        What is known of the session.

    Raises:
        RefervosError: The file is not a session, is damaged, or exceeds the limits.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
            if SESSION_FILE not in names or not set(names) <= _MEMBERS or len(set(names)) != len(names):
                raise _damaged("it was not written by refervos serve")
            for name in names:
                _extract(archive, name, folder, limits)
        content = json.loads((folder / SESSION_FILE).read_bytes())
        record = _checked_record(content, session, limits)
        snapshots = [Snapshot.from_json(each) for each in content["snapshots"]][:1]
        if (folder / _STATE).is_file():
            (folder / _STATE).replace(folder / "00000000.session")
        for snapshot in snapshots:
            if snapshot.file != "00000000.session" or not 0 <= snapshot.edits <= len(content["edits"]):
                raise _damaged("its state does not fit")
        (folder / MASKS_FILE).touch()
        _check_masks(folder / MASKS_FILE, limits)
        video = folder / _VIDEO
        record.source = place(video if video.is_file() else None, record.source)
        content |= {"record": _as_json(record), "running": False, "snapshots": [each.to_json() for each in snapshots]}
        (folder / SESSION_FILE).write_text(json.dumps(content), encoding="utf-8")
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, OSError, RecursionError, NotImplementedError) as error:
        raise _damaged("a part of it cannot be read") from error
    return record


def _as_json(record: SessionRecord) -> dict[str, Any]:
    return asdict(record) | {"tracks": [asdict(track) for track in record.tracks.values()]}


def _extract(archive: zipfile.ZipFile, name: str, folder: Path, limits: Limits) -> None:
    """Extract one member, within the limit of its kind whatever its header announces."""
    left = _LONGEST_JSON if name == SESSION_FILE else limits.upload_bytes
    with archive.open(name) as packed, (folder / name).open("xb") as file:
        while piece := packed.read(_PIECE):
            left -= len(piece)
            if left < 0:
                sentence = "the session in this file is larger than the limit of an upload."
                raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", sentence)
            file.write(piece)


def _checked_record(content: dict[str, Any], session: str, limits: Limits) -> SessionRecord:
    """Check what is known of a session by its types, and number it anew."""
    values = dict(content["record"])
    tracks = {int(track["id"]): track for track in values["tracks"]}
    try:
        record = _RECORD.validate_python({**values, "id": session, "tracks": tracks})
        edits = _EDITS.validate_python(content["edits"])
    except ValidationError as error:
        raise _damaged("a field has another type") from error
    if len(record.tracks) > limits.sentences or len(edits) > limits.frames:
        raise _damaged("it has more sentences or corrections than are allowed here")
    if any(len(track.expression.split()) > limits.words for track in record.tracks.values()):
        raise _damaged("a sentence is longer than is allowed here")
    if any(edit.kind != "skip" and edit.track is None for edit in edits) or not isinstance(content["edit_count"], int):
        raise _damaged("an edit belongs to no track")
    if not isinstance(content.get("end"), int | None):
        raise _damaged("its end is not a frame")
    if not {"frame", "kind"} <= set.intersection(*[set(event) for event in record.events] or [{"frame", "kind"}]):
        raise _damaged("an event has no frame")
    if any(key >= record.next_track or key < 0 for key in record.tracks) or record.next_track > 10**6:
        raise _damaged("its tracks are not numbered")
    for alert in record.alerts:
        alert.webhook = None  # whoever wrote the file is not allowed to choose an address
    record.live, record.can_go_back, record.recording = False, True, False
    return record


def _check_masks(path: Path, limits: Limits) -> None:
    """Check every mask, because the decoder of run lengths trusts them."""
    with path.open("rb") as file:
        while line := file.readline(_LONGEST_LINE):
            record = json.loads(line)
            height, width = record["size"]
            frame = record["frame"]
            if not isinstance(frame, int) or not 0 <= frame <= limits.frames or height * width > limits.pixels:
                raise _damaged("a frame is beyond the limits")
            if record["time"] is not None:
                float(record["time"])
            for track in record["tracks"]:
                if not isinstance(track["id"], int) or not 0 <= float(track["presence"]) <= 1:
                    raise _damaged("a presence is not a probability")
                try:
                    decode_rle({"size": [height, width], "counts": track["counts"]}, "a mask")
                except RefervosError:
                    raise _damaged("a mask is damaged") from None


def _damaged(reason: str) -> Problem:
    sentence = f"this file is not a complete session ({reason}); give a file that was saved from a session."
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "damaged-session", sentence)
