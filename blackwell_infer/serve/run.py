"""Runs the server: a socket, signals, and an orderly end."""
from __future__ import annotations

import signal
import socket
from types import FrameType

import uvicorn

from blackwell_infer.errors import ConfigError
from blackwell_infer.log import logger
from blackwell_infer.serve.app import make_app
from blackwell_infer.serve.host import Host


class Server(uvicorn.Server):
    """Tells the host when the end begins, so that nothing new is let in while answers that run go on. A signal that
    ended it in order is not raised again; a second SIGINT ends it at once."""

    def __init__(self, config: uvicorn.Config, host: Host) -> None:
        super().__init__(config)
        self._host = host

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._host.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def listening(host: str, port: int) -> socket.socket:
    """A listening socket. ConfigError if the address cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.create_server(found[4][:2], family=found[0], backlog=2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}; set another host or port") from None
    return made


def run(host: Host, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM. Then take nothing new, finish what runs within drain_timeout, cancel the rest."""
    config = uvicorn.Config(make_app(host), log_config=None, access_log=False, lifespan="off", server_header=False,
                            timeout_graceful_shutdown=max(1, round(host.config.drain_timeout)))
    logger.info("listening on %s", listener.getsockname())
    Server(config, host).run(sockets=[listener])
