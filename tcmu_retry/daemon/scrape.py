"""The HTTP server that Prometheus scrapes: prometheus-client's application in a server that waits when it must."""

from __future__ import annotations

import socket
import threading
import time
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

AGAIN_SECONDS = 1.0


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:  # no file descriptor left: who waits keeps the listener readable, and the loop would spin
            time.sleep(AGAIN_SECONDS)
            raise


class _SixServer(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def serve(address: str, port: int, registry: CollectorRegistry) -> None:
    """From a thread of its own, until the process ends. Raises OSError."""
    family = socket.getaddrinfo(address, port)[0][0]
    kind = _SixServer if family == socket.AF_INET6 else _Server
    server = make_server(address, port, make_wsgi_app(registry), kind, _Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
