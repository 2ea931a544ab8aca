"""Video input and output: sources of frames, sinks for masks, and drawing."""

from refervos.progress import progress
from refervos.video.frames import Frame, SourceInfo
from refervos.video.live import ReconnectPolicy
from refervos.video.overlay import draw_overlay, palette
from refervos.video.reader import Losses, Source
from refervos.video.sinks import (
    BinarySink,
    CutoutSink,
    OverlayImageSink,
    OverlaySink,
    PaletteSink,
    RleSink,
    Sink,
    davis_palette,
    overlay_sink,
)
from refervos.video.sources import open_source, read_video

__all__ = [
    "BinarySink",
    "CutoutSink",
    "Frame",
    "Losses",
    "OverlayImageSink",
    "OverlaySink",
    "PaletteSink",
    "ReconnectPolicy",
    "RleSink",
    "Sink",
    "Source",
    "SourceInfo",
    "davis_palette",
    "draw_overlay",
    "open_source",
    "overlay_sink",
    "palette",
    "progress",
    "read_video",
]
