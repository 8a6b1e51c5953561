"""Serve a red live picture at rtsp://127.0.0.1:PORT/red through GStreamer's RTSP server.

Run by the system's python3, which has GStreamer's bindings; prints the port when it is ready.
"""

import sys

import gi  # type: ignore[import-not-found,import-untyped,unused-ignore]

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import (  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
    GLib,
    Gst,
    GstRtspServer,
)

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true pattern=red"
    " ! video/x-raw,format=I420,width=320,height=240,framerate=30/1"
    " ! jpegenc ! rtpjpegpay name=pay0 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/red", factory)
if not server.attach(None):
    sys.exit("cannot listen")
sys.stdout.write(f"{server.get_bound_port()}\n")
sys.stdout.flush()
GLib.MainLoop().run()
