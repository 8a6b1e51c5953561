"""A broker that lets us in and then refuses what we ask to hear."""

from __future__ import annotations

import socket
import threading

import pytest

from edge_app.errors import EdgeAppError
from edge_app.publish.link import Broker
from edge_app.publish.listen import listening


def test_a_refused_subscription_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x20\x02\x00\x00")  # CONNACK: accepted
                packet = connection.recv(1000)
                connection.sendall(b"\x90\x04" + packet[2:4] + b"\x00\x80")  # SUBACK: one refused
                while connection.recv(1000):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        broker = Broker("127.0.0.1", server.getsockname()[1], "t")
        with (
            pytest.raises(EdgeAppError, match=r"refuses to send b/#: "),
            listening(broker, ["a/#", "b/#"]),
        ):
            pass
        thread.join()
