"""The appliance on a network camera that falls silent."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.contract.test_cameras import RtspServer
from tests.integration.test_appliance import PATIENCE_S, appliance, write_config


def test_sigterm_ends_it_in_time_though_the_stream_is_silent(tmp_path: Path) -> None:
    server = RtspServer()
    try:
        config = write_config(tmp_path, port=None, source=server.source)
        with appliance(config) as process:
            assert process.stdout is not None
            assert any('"labels"' in line for line in process.stdout)
            server.process.send_signal(signal.SIGSTOP)
            process.send_signal(signal.SIGTERM)
            asked_s = time.monotonic()
            _, err = process.communicate(timeout=PATIENCE_S)
            assert time.monotonic() - asked_s < 6  # the contract's bound, not a speed
        assert process.returncode == 0, err
        assert "hangs" not in err
    finally:
        server.close()
