"""Opens media containers for reading: only kinds that hold media themselves, and only from where the user said."""

from __future__ import annotations

from typing import Any

import av

from refervos.files.images import MAX_PIXELS
from refervos.video.addresses import scheme_of

# Lists of other media (concat, playlists), which would read anything anywhere, and text as a film are not among them.
_HOLDERS = (
    # films
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
    # coded pictures without a container
    *("h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu", "m4v", "mpegvideo", "mjpeg", "mjpeg_2000", "vc1"),
    *("dirac", "cavsvideo", "avs2", "avs3", "dnxhd", "apv", "ingenient"),
    # single pictures
    *("png_pipe", "jpeg_pipe", "webp_pipe", "tiff_pipe", "bmp_pipe", "gif_pipe", "j2k_pipe", "jpegxl_pipe"),
    *("jpegls_pipe", "pam_pipe", "pbm_pipe", "pgm_pipe", "ppm_pipe", "pfm_pipe", "exr_pipe", "dpx_pipe", "qoi_pipe"),
    *("hdr_pipe", "sgi_pipe", "pcx_pipe", "psd_pipe", "sunrast_pipe"),
    # sound alone, to be able to say so
    *("mp3", "aac", "ac3", "eac3", "flac", "wav", "w64", "aiff", "caf", "au", "amr", "ape", "wv", "tta", "dts", "loas"),
)
_STREAMS = ("hls", "mpjpeg", "rtsp", "rtp", "sdp", "live_flv", "mpegtsraw")
_NETWORK = (
    *("http", "https", "httpproxy", "tcp", "tls", "udp", "udplite", "rtp", "srtp", "srt", "crypto", "data"),
    *("rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "ffrtmphttp", "ffrtmpcrypt"),
)
_SCHEME_OPTIONS = {
    # Over TCP a lossy network delays a camera's pictures instead of smearing them.
    "rtsp": {"rtsp_transport": "tcp"},
    "rtsps": {"rtsp_transport": "tcp"},
    # Packets that come faster than they are read are lost, but the stream goes on.
    "udp": {"overrun_nonfatal": "1"},
}


def open_input(address: str, *, device: str | None = None, options: dict[str, str] | None = None, **more: Any) -> Any:
    """Opens a container, not minding titles and other notes in it that are not UTF-8.

    Args:
        address: What FFmpeg is to open: ``file:`` and a path, the address of a stream, or a device.
        device: The kind of device, where it is one.
        options: Of FFmpeg.
        more: Further arguments of `av.open`.

    Returns:
        The PyAV input container.

    Raises:
        FFmpegError: It cannot be opened, or is of a kind that is not read (EINVAL).
    """
    known = {"max_pixels": str(MAX_PIXELS)}
    if device is not None:
        more["format"] = device
    elif address.startswith("file:"):
        known |= {"format_whitelist": ",".join(_HOLDERS), "protocol_whitelist": "file"}
    else:
        known |= {"format_whitelist": ",".join(_HOLDERS + _STREAMS), "protocol_whitelist": ",".join(_NETWORK)}
        known |= _SCHEME_OPTIONS.get(scheme_of(address), {})
    more["options"] = known | (options or {})
    try:
        return av.open(address, mode="r", **more)
    except UnicodeDecodeError:
        # Releases of PyAV up to 18 fail on such notes unless told not to; later ones no longer know the option.
        return av.open(address, mode="r", metadata_errors="ignore", **more)
