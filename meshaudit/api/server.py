"""The socket and the signals: one process, which lets go of everything at SIGTERM."""

import asyncio
import logging
import signal
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn

from meshaudit.api.app import create
from meshaudit.api.context import Context
from meshaudit.api.settings import Settings
from meshaudit.errors import MeshauditError

_GRACE = 10  # seconds that requests may go on after SIGTERM
_HEADERS = 65536  # bytes that are read at all before a request is refused


class Server(uvicorn.Server):
    """uvicorn's, which tells the streams that it stops: they would keep it waiting."""

    def __init__(self, config: uvicorn.Config, parts: Context) -> None:
        super().__init__(config)
        self._parts = parts

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # In a signal's handler the loop is only woken by this.
        asyncio.get_running_loop().call_soon_threadsafe(self._parts.stopping.set)


def bind(host: str, port: int) -> socket.socket:
    """The listening socket. An error says what is wrong before anything is begun."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except (OSError, OverflowError) as exc:
        said = getattr(exc, "strerror", None) or str(exc)
        raise MeshauditError(
            f"cannot listen on {host} port {port}: {said}", "choose another --host or --port"
        ) from exc
    return listening


def run(settings: Settings, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    application, app = create(settings)
    parts: Context = app.state.context
    parts.tokens.load()
    options: dict[str, Any] = {
        "http": "h11",
        "ws": "none",
        "h11_max_incomplete_event_size": _HEADERS,
        # The peer is who has connected; what headers say about it is for the gate to judge.
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,
        "log_config": None,
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": _GRACE,
        "backlog": 1024,
    }
    server = Server(uvicorn.Config(application, **options), parts)
    host, port = listening.getsockname()[:2]
    print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    # uvicorn raises the signal again when it is done: to stop when told to is no failure
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run(sockets=[listening])
