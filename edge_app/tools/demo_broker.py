"""The demo's MQTT broker, in a process of its own: `python -m edge_app.tools.demo_broker PORT`.

The only module that imports amqtt, and the only one that uses asyncio, because amqtt does.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from amqtt.broker import Broker


async def serve(port: int) -> None:
    """Serve anonymous clients on loopback until SIGTERM or SIGINT."""
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    await broker.start()
    await asked_to_stop.wait()
    await broker.shutdown()


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # it reports every departing client as an error
    asyncio.run(serve(int(sys.argv[1])))
