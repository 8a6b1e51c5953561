"""In the place of PiDNG, which picamera2 imports to write raw photos; nothing here does."""


class PICAM2DNG: ...
