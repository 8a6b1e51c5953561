"""Opens the configured cameras, each with a capture thread and a slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edge_app.camera.mailbox import Feed, Mailboxes
from edge_app.camera.opening import open_camera
from edge_app.camera.sources import is_lossless, stall_bound_s
from edge_app.config import CameraConfig
from edge_app.inference import Prepared, preparer


def open_cameras(
    cameras: Mapping[str, CameraConfig],
    input_px: tuple[int, int],
    wait_s: Callable[[str], float] = lambda _: 0.0,
) -> Mailboxes[Prepared]:
    """Make every configured camera and its capture thread; they start on `with`.

    `wait_s`: see `Mailboxes`.
    """
    feeds = {
        name: Feed(
            open_camera(
                name,
                camera.source,
                size_px=camera.size_px,
                fps=camera.fps,
                loop=camera.loop,
                cover_px=input_px,
            ),
            lossless=is_lossless(camera.source, fps=camera.fps, loop=camera.loop),
            stall_s=stall_bound_s(camera.fps),
        )
        for name, camera in cameras.items()
    }
    crops = {name: camera.crop for name, camera in cameras.items()}
    return Mailboxes(feeds, preparer(input_px, crops), wait_s)
