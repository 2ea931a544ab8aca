"""Audio of the source, copied or re-encoded into a new video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from av.error import FFmpegError

from refervos.video.containers import open_input

# Codecs that players support in an mp4; others are re-encoded as AAC.
_COPIED = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}
_AAC_RATES = {96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000}
_TIMEOUT = (15.0, 15.0)  # seconds, for network sources


class AudioTrack:
    """Audio track of a media file or address, written packet by packet beside the video.

    Uses the main track, or the first other one if that cannot be decoded. Packets are copied if an mp4 supports the
    codec, or else encoded as AAC. Must be opened before the header of the output is written.
    """

    def __init__(self, address: str, output: Any, begin: float) -> None:
        """Open the media and add a stream to the output.

        Args:
            address: Address of the media, as for FFmpeg.
            output: Open PyAV output container.
            begin: Time of the media in seconds that becomes 0 in the output.

        Raises:
            LookupError: There is no audio after that time.
            ValueError: The codec is unknown.
            FFmpegError: The media cannot be read.
        """
        self._output = output
        self._begin = begin
        self._input: Any = open_input(address, timeout=_TIMEOUT)
        failure: Exception = LookupError("no audio stream")
        for index in _tracks(self._input):
            try:
                if self._input is None:
                    self._input = open_input(address, timeout=_TIMEOUT)
                self._begin_track(self._input.streams[index])
                break
            except Exception as error:  # another track may still be readable
                failure = error
                self.close()
        else:
            self.close()
            raise failure
        if self._copies:
            self._target: Any = output.add_stream_from_template(self._source)
        else:
            rate = self._source.codec_context.sample_rate
            self._target = output.add_stream("aac", rate=rate if rate in _AAC_RATES else 48000)
            self._target.codec_context.layout = "mono" if self._source.codec_context.channels == 1 else "stereo"

    def _begin_track(self, source: Any) -> None:
        if source.codec_context is None:
            raise ValueError("its codec is unknown")
        self._source = source
        # Decoder names have suffixes for their arithmetic: mp3float, ac3_fixed.
        codec = re.sub("(_?float|_?fixed)$", "", source.codec_context.name)
        self._copies = codec.removeprefix("lib") in _COPIED
        self._pieces: Iterator[Any] = self._packets() if self._copies else self._decoded_frames()
        # Read before a stream is added, because a stream without packets confuses players.
        self._next: Any = next(self._pieces, None)
        if self._next is None:
            raise LookupError("no audio in the range of the video")

    def write_until(self, end: float) -> None:
        """Write the audio that begins before a time.

        Args:
            end: Time in the output in seconds.
        """
        while self._next is not None and self._seconds(self._next) < end:
            piece, self._next = self._next, None
            if self._copies:
                piece.stream = self._target
                self._output.mux(piece)
            else:
                self._output.mux(self._target.encode(piece))
            self._next = next(self._pieces, None)

    def finish(self, end: float) -> None:
        """Write the audio up to the end of the video, and flush the encoder.

        Args:
            end: Time at which the video ends, in seconds.
        """
        self.write_until(end)
        if not self._copies:
            self._output.mux(self._target.encode(None))

    def close(self) -> None:
        """Close the source."""
        if self._input is not None:
            self._input.close()
            self._input = None

    @staticmethod
    def _seconds(piece: Any) -> float:
        return float(piece.pts * piece.time_base)

    def _packets(self) -> Iterator[Any]:
        """Yield encoded packets, shifted to the time of the output."""
        shift = round(self._begin / self._source.time_base)
        last: int | None = None
        for packet in self._input.demux(self._source):
            if packet.dts is None or packet.pts is None:
                continue
            packet.pts -= shift
            packet.dts -= shift
            # The packet that ends exactly where the video begins is kept: decoders need it to start.
            if packet.pts + (packet.duration or 0) < 0 or (last is not None and packet.dts <= last):
                continue
            last = packet.dts
            yield packet

    def _decoded_frames(self) -> Iterator[Any]:
        """Yield decoded audio frames, shifted to the time of the output."""
        for packet in self._input.demux(self._source):
            try:
                frames = packet.decode()
            except FFmpegError:
                continue  # a damaged packet becomes a short silence
            for frame in frames:
                if frame.pts is None:
                    continue
                frame.pts -= round(self._begin / frame.time_base)
                if frame.pts + round(frame.samples / frame.sample_rate / frame.time_base) > 0:
                    yield frame


def _tracks(container: Any) -> list[int]:
    """Return the stream indices of the audio tracks: decodable ones first, and the main one first among them."""
    main = container.streams.best("audio")
    tracks = [stream.index for stream in container.streams.audio if stream.codec_context is not None]
    others = [stream.index for stream in container.streams.audio if stream.codec_context is None]
    return sorted(tracks, key=lambda index: main is None or index != main.index) + others
