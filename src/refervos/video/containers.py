"""Open media containers for reading: only formats that contain media, and only from the given address."""

from __future__ import annotations

from typing import Any, BinaryIO

import av

from refervos.files.images import MAX_PIXELS
from refervos.video.addresses import scheme_of

# Excluded are formats that refer to other media (concat, playlists) and could read any file, and text shown as video.
_FORMATS = (
    # containers
    *(
        "mov",
        "matroska",
        "webm",
        "avi",
        "mpegts",
        "mpeg",
        "asf",
        "flv",
        "ogg",
        "mxf",
        "gxf",
        "nut",
        "rm",
        "wtv",
        "dhav",
    ),
    *("gif", "apng", "ivf", "dv", "yuv4mpegpipe", "cine", "ser", "nsv", "swf", "jpegxl_anim"),
    # bare video streams
    *("h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu", "m4v", "mpegvideo", "mjpeg", "mjpeg_2000", "vc1"),
    *("dirac", "cavsvideo", "avs2", "avs3", "dnxhd", "apv", "ingenient"),
    # single images
    *("png_pipe", "jpeg_pipe", "webp_pipe", "tiff_pipe", "bmp_pipe", "gif_pipe", "j2k_pipe", "jpegxl_pipe"),
    *("jpegls_pipe", "pam_pipe", "pbm_pipe", "pgm_pipe", "ppm_pipe", "pfm_pipe", "exr_pipe", "dpx_pipe", "qoi_pipe"),
    *("hdr_pipe", "sgi_pipe", "pcx_pipe", "psd_pipe", "sunrast_pipe"),
    # audio, for a clear error message
    *("mp3", "aac", "ac3", "eac3", "flac", "wav", "w64", "aiff", "caf", "au", "amr", "ape", "wv", "tta", "dts", "loas"),
)
_STREAMS = ("hls", "mpjpeg", "rtsp", "rtp", "sdp", "live_flv", "mpegtsraw")
_LEADING_ON = ("hls", "sdp")
_NETWORK = (
    *("http", "https", "httpproxy", "tcp", "tls", "udp", "udplite", "rtp", "srtp", "srt", "crypto", "data"),
    *("rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "ffrtmphttp", "ffrtmpcrypt"),
)
_SCHEME_OPTIONS = {
    # Over TCP a lossy network delays frames instead of corrupting them.
    "rtsp": {"rtsp_transport": "tcp"},
    "rtsps": {"rtsp_transport": "tcp"},
    # Packets that arrive faster than they are read are lost, but the stream continues.
    "udp": {"overrun_nonfatal": "1"},
}


def open_input(
    address: str | BinaryIO,
    *,
    device: str | None = None,
    options: dict[str, str] | None = None,
    redirects: bool = True,
    **more: Any,
) -> Any:
    """Open a container, ignoring metadata that is not UTF-8.

    Args:
        address: Address for FFmpeg: ``file:`` and a path, a stream, or a device; or an open file that can seek.
        device: FFmpeg's name of the device type, for devices.
        options: FFmpeg options.
        redirects: Whether a network address may lead to others, by an HTTP redirect or a playlist.
        more: Further arguments of ``av.open``.

    Returns:
        The PyAV input container.

    Raises:
        FFmpegError: It cannot be opened, or its format is not allowed (EINVAL).
    """
    known = {"max_pixels": str(MAX_PIXELS)}
    if device is not None:
        more["format"] = device
    elif not isinstance(address, str):
        known |= {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "data"}  # nothing but this file
    elif address.startswith("file:"):
        known |= {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}
    else:
        streams = _STREAMS if redirects else tuple(kind for kind in _STREAMS if kind not in _LEADING_ON)
        known |= {"format_whitelist": ",".join(_FORMATS + streams), "protocol_whitelist": ",".join(_NETWORK)}
        if not redirects:
            known["max_redirects"] = "0"
        known |= _SCHEME_OPTIONS.get(scheme_of(address), {})
    more["options"] = known | (options or {})
    try:
        return av.open(address, mode="r", **more)
    except UnicodeDecodeError:
        # PyAV up to 18 fails on such metadata without this option; later releases no longer have it.
        return av.open(address, mode="r", metadata_errors="ignore", **more)
