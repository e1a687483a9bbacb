"""A server's life: its address, its start, its end after the requests that are in flight."""

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

from hf_accum.errors import UserError, first_line

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LATE_SECONDS = 5  # for an answer that is ready, to be sent
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 is any that is free.

    Raises:
        UserError: if it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2_048)
    except (OSError, UnicodeError) as error:
        way_out = "give a host of this machine, and a port that nothing else listens at (0: any that is free)"
        raise UserError(
            f"--host {host}, --port {port}: cannot be listened at ({first_line(error)}); {way_out}"
        ) from error


def address_of(listening: socket.socket) -> str:
    """What clients ask."""
    host, port, *_ = listening.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: Any, listening: socket.socket, timeout_seconds: float, say: Callable[[str], None]) -> None:
    """Answer until SIGTERM or Ctrl-C; then what is in flight, for `timeout_seconds` at most. A second Ctrl-C ends it.

    Nothing of a request is logged: no address, and no text.
    """
    import uvicorn

    how: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "server_header": False}
    how["timeout_graceful_shutdown"] = int(timeout_seconds) + _LATE_SECONDS
    server = uvicorn.Server(uvicorn.Config(app, **how))

    def stop(number: int, _: object) -> None:
        server.handle_exit(number, None)  # also one that came before it had begun to run

    # uvicorn raises the signals again at its end, for these: the process ends well then, not by them.
    former = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        say(f"serving on {address_of(listening)}; Ctrl-C or SIGTERM ends it after the requests that are in flight")
        asyncio.run(server.serve(sockets=[listening]))
        say("ended")
    finally:
        listening.close()
        for number, handler in former.items():
            signal.signal(number, handler)
