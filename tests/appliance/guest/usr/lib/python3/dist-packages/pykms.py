"""In the place of a display library that picamera2 imports and a headless machine does not use."""

from enum import Enum, auto


class PixelFormat(Enum):
    RGB888 = auto()
    BGR888 = auto()
    XRGB8888 = auto()
    XBGR8888 = auto()
    ABGR8888 = auto()
    YUV420 = auto()
    YVU420 = auto()
    NV12 = auto()
