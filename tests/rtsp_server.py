"""An RTSP server of drawn pictures, for the system's Python with GStreamer (gir1.2-gst-rtsp-server-1.0).

Run as ``python3 rtsp_server.py FOLDER PORT USER:PASSWORD``: it plays FOLDER/00000.png, 00001.png and so on in a loop,
as H.264 at rtsp://USER:PASSWORD@127.0.0.1:PORT/stream, and prints ``ready``.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PIPELINE = (
    '( multifilesrc location="{folder}/%05d.png" loop=true start-index=0 caps="image/png,framerate=15/1" ! pngdec '
    "! videoconvert ! video/x-raw,format=I420 ! openh264enc gop-size=15 ! h264parse "
    "! rtph264pay name=pay0 pt=96 config-interval=1 )"
)
ROLE = "viewer"


def main() -> None:
    """Serve until killed."""
    folder, port, login = sys.argv[1:]
    Gst.init(None)
    missing = [
        name for name in ("multifilesrc", "pngdec", "openh264enc", "rtph264pay") if not Gst.ElementFactory.find(name)
    ]
    if missing:
        sys.exit(f"GStreamer lacks {', '.join(missing)}")
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", ROLE)
    access = GstRtspServer.RTSPAuth()
    access.add_basic(GstRtspServer.RTSPAuth.make_basic(*login.split(":")), token)
    server.set_auth(access)
    allowed = GstRtspServer.RTSPPermissions()
    for right in ("access", "construct"):
        allowed.add_permission_for_role(ROLE, f"media.factory.{right}", True)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PIPELINE.format(folder=folder))
    factory.set_shared(True)
    factory.set_permissions(allowed)
    server.get_mount_points().add_factory("/stream", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
