"""Recordings for the viewer Rerun: frames, masks and presence along the frame number and the time."""

from __future__ import annotations

import io
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from refervos.errors import require_installed
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame
from refervos.video.overlay import palette
from refervos.video.sinks import FolderSink
from refervos.video.tracks import TrackNumbers

if TYPE_CHECKING:
    import rerun

JPEG_QUALITY = 85
"""Quality of the frames in a recording; masks are stored without loss."""

PART_SIZE = 64 * 2**20
"""Approximate size of a file of a recording in bytes; a part is held in memory until it is complete."""


class RerunLogger:
    """Logs frames and their masks to a recording of Rerun.

    The entities are ``video/image``; ``video/masks/<k>``, a segmentation image for each track, so that masks may
    overlap; and ``presence/<k>``. Tracks are numbered from 0 in order of first appearance, and the class of track k is
    k + 1. The timelines are ``frame``, the index in the video, and ``time``, in seconds, if the source has times.
    """

    def __init__(self) -> None:
        """Check that Rerun is installed.

        Raises:
            MissingDependencyError: It is not.
        """
        require_installed("rerun output", "rerun", "rerun")
        self._numbers = TrackNumbers()
        self._expressions: dict[int, str] = {}
        self._shown: set[int] = set()

    def log(self, recording: rerun.RecordingStream, frame: Frame, segmentation: Segmentation) -> int:
        """Log the next frame.

        Args:
            recording: Where to log to: a running viewer, a server or a file.
            frame: Frame of the source.
            segmentation: Its masks.

        Returns:
            Approximate size of what was logged in bytes.
        """
        import rerun as rr

        recording.reset_time()
        recording.set_time("frame", sequence=frame.index)
        if frame.time is not None:
            recording.set_time("time", duration=frame.time)
        numbers = [self._numbers.of(track) for track in segmentation.track_ids]
        self._log_names(recording, dict(zip(numbers, segmentation.expressions, strict=True)))
        jpeg = io.BytesIO()
        Image.fromarray(frame.image).save(jpeg, "JPEG", quality=JPEG_QUALITY)
        recording.log("video/image", rr.EncodedImage(contents=jpeg.getvalue(), media_type="image/jpeg"))
        size = jpeg.tell()
        for number, mask, presence in zip(numbers, segmentation.masks, segmentation.presence, strict=True):
            dtype = np.uint8 if number < 255 else np.uint16
            recording.log(f"video/masks/{number}", rr.SegmentationImage(mask * dtype(number + 1), opacity=0.5))
            recording.log(f"presence/{number}", rr.Scalars(float(presence)))
            size += mask.size // 32  # run lengths compress well
        # The viewer shows the last mask of a track until it is cleared.
        for number in self._shown.difference(numbers):
            recording.log(f"video/masks/{number}", rr.Clear(recursive=False))
            recording.log(f"presence/{number}", rr.Clear(recursive=False))
        self._shown = set(numbers)
        return size

    def _log_names(self, recording: rerun.RecordingStream, expressions: dict[int, str]) -> None:
        """Log names and colours if a track is new or has another expression."""
        import rerun as rr

        changed = {number for number, text in expressions.items() if self._expressions.get(number) != text}
        if not changed:
            return
        self._expressions |= expressions
        colours = palette(max(self._expressions) + 1)
        classes = [(number + 1, text, colours[number]) for number, text in self._expressions.items()]
        # Without a colour of its own the background would be tinted.
        context = rr.AnnotationContext([(0, "background", (0, 0, 0, 0)), *classes])
        recording.log("video", context, static=True)
        for number in changed:
            line = rr.SeriesLines(names=expressions[number], colors=colours[number])
            recording.log(f"presence/{number}", line, static=True)


class RerunSink(FolderSink):
    """Sink for a recording of Rerun, as files ``<first frame>-<recording>.rrd`` of about 64 MB in a folder.

    Each file appears when it is complete, and opens alone or together with the others of its recording.
    """

    _pattern = "*.rrd"
    _contents = "a recording"

    def __init__(
        self, folder: str | Path, *, name: str = "refervos", overwrite: bool = False, resume: bool = False
    ) -> None:
        """Open the folder.

        Args:
            folder: Output folder; created with its parents.
            name: Name of the recording in the viewer.
            overwrite: Whether to replace an earlier recording.
            resume: Whether to add to an earlier recording.

        Raises:
            OutputError: It already has a recording, is a file, or is not writable.
            MissingDependencyError: rerun-sdk is not installed.
        """
        self._logger = RerunLogger()
        super().__init__(folder, overwrite=overwrite, resume=resume)
        earlier = sorted(self._folder.glob(self._pattern)) if resume else []
        self._name = name
        self._id = earlier[-1].stem.rpartition("-")[2] if earlier else secrets.token_hex(4)
        self._part: _Part | None = None

    def close(self) -> list[Path]:
        """Write the last file; safe to call twice.

        Returns:
            The folder; empty if no frame was written.

        Raises:
            OutputError: The file cannot be written.
        """
        if not self._closed:
            self._finish_part()
        return super().close()

    def abort(self) -> None:
        """Close the sink; files already written stay."""
        self._part = None
        super().abort()

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        if self._part is None:
            self._part = _Part(self._folder / f"{frame.index:06d}-{self._id}.rrd", self._name, self._id)
        self._part.size += self._logger.log(self._part.recording, frame, segmentation)
        if self._part.size > PART_SIZE:
            self._finish_part()

    def _finish_part(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._put(part.read(), part.path)


class _Part:
    """A file of a recording before it is written.

    Rerun encodes it in memory: its own file sink never returns from a full disk, and its stream can be read only once,
    because each read ends a file.

    Attributes:
        path: Where it is going to be written.
        recording: Where to log to.
        size: Approximate size of what was logged, in bytes.
    """

    def __init__(self, path: Path, name: str, recording_id: str) -> None:
        import rerun as rr
        from rerun import blueprint

        self.path = path
        self.size = 0
        self.recording = rr.RecordingStream("refervos", recording_id=recording_id)
        self._stream = self.recording.binary_stream()
        self.recording.set_log_time_enabled(False)
        self.recording.send_recording_name(name)
        views = [blueprint.Spatial2DView(origin="video"), blueprint.TimeSeriesView(origin="presence")]
        panel = blueprint.TimePanel(timeline="frame", state="collapsed")
        self.recording.send_blueprint(blueprint.Blueprint(blueprint.Vertical(*views, row_shares=[4, 1]), panel))

    def read(self) -> bytes:
        """Encode everything that was logged, and end the recording."""
        data = self._stream.read()
        self.recording.disconnect()
        return data or b""
