"""Carries the sound of the source video over into a new video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from av.error import FFmpegError

from refervos.video.containers import open_input

# What players are known to play in an mp4; the rest becomes AAC.
_COPIED = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}
_AAC_RATES = {96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000}
_TIMEOUT = (15.0, 15.0)  # seconds, for what comes over a network


class AudioTrack:
    """The sound of a media file or address, written packet by packet next to the video.

    Its main track, or the first of the others where nothing here understands that one. Copied as it is where an mp4
    takes it, else encoded as AAC. To be opened before the output's header is written.
    """

    def __init__(self, address: str, output: Any, begin: float) -> None:
        """Opens the media and adds a stream to the output.

        Args:
            address: The media, as FFmpeg is to open it.
            output: The open PyAV output container.
            begin: Seconds on the media's clock that become 0 in the output.

        Raises:
            LookupError: There is no sound from there on.
            ValueError: Its coding is none that is known here.
            FFmpegError: It cannot be read.
        """
        self._output = output
        self._begin = begin
        self._input: Any = open_input(address, timeout=_TIMEOUT)
        failure: Exception = LookupError("no audio stream")
        for place in _tracks(self._input):
            try:
                if self._input is None:
                    self._input = open_input(address, timeout=_TIMEOUT)
                self._begin_track(self._input.streams[place])
                break
            except Exception as error:  # whatever is wrong with one track, another may be as it should
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
            raise ValueError("its coding is none that is known here")
        self._source = source
        # Decoders add their manner of computing to the name: mp3float, ac3_fixed.
        codec = re.sub("(_?float|_?fixed)$", "", source.codec_context.name)
        self._copies = codec.removeprefix("lib") in _COPIED
        self._pieces: Iterator[Any] = self._packets() if self._copies else self._sounds()
        # Looked at before a stream is added: a stream that stays without packets confuses players.
        self._next: Any = next(self._pieces, None)
        if self._next is None:
            raise LookupError("no audio in the range of the video")

    def write_until(self, end: float) -> None:
        """Writes the sound that begins before a time.

        Args:
            end: Seconds in the output.
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
        """Writes the sound up to the video's end, then what the encoder still holds.

        Args:
            end: Seconds in the output at which the video ends.
        """
        self.write_until(end)
        if not self._copies:
            self._output.mux(self._target.encode(None))

    def close(self) -> None:
        """Closes the source."""
        if self._input is not None:
            self._input.close()
            self._input = None

    @staticmethod
    def _seconds(piece: Any) -> float:
        return float(piece.pts * piece.time_base)

    def _packets(self) -> Iterator[Any]:
        """Coded packets, moved to the output's clock."""
        shift = round(self._begin / self._source.time_base)
        last: int | None = None
        for packet in self._input.demux(self._source):
            if packet.dts is None or packet.pts is None:
                continue
            packet.pts -= shift
            packet.dts -= shift
            # The packet that ends just where the video begins is kept: decoders need it to start up.
            if packet.pts + (packet.duration or 0) < 0 or (last is not None and packet.dts <= last):
                continue
            last = packet.dts
            yield packet

    def _sounds(self) -> Iterator[Any]:
        """Decoded sound, moved to the output's clock."""
        for packet in self._input.demux(self._source):
            try:
                sounds = packet.decode()
            except FFmpegError:
                continue  # a damaged packet is a short silence
            for sound in sounds:
                if sound.pts is None:
                    continue
                sound.pts -= round(self._begin / sound.time_base)
                if sound.pts + round(sound.samples / sound.sample_rate / sound.time_base) > 0:
                    yield sound


def _tracks(container: Any) -> list[int]:
    """Places of the sound tracks among the streams, those that can be understood first, of these the main one."""
    main = container.streams.best("audio")
    tracks = [stream.index for stream in container.streams.audio if stream.codec_context is not None]
    others = [stream.index for stream in container.streams.audio if stream.codec_context is None]
    return sorted(tracks, key=lambda place: main is None or place != main.index) + others
