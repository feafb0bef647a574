"""A proxy before an object store, which counts the objects read, and can damage, delay or withhold them."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Change = Callable[[str, bytes], bytes]


class StoreProxy:
    """What the proxy does.

    Attributes:
        url: Its URL.
        reads: How often each object was read, by the name after its last slash.
        before: Called with the name of an object before it is read.
        change: Returns the bytes to send for a name and its bytes; shorter ones break the connection.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.reads: Counter[str] = Counter()
        self.before: Callable[[str], object] = lambda name: None
        self.change: Change = lambda name, data: data


@contextmanager
def store_proxy(endpoint: str) -> Iterator[StoreProxy]:
    """Run a proxy before the store at `endpoint`."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            name = url.path.rpartition("/")[2]
            is_read = self.command == "GET" and "list-type" not in url.query
            if is_read:
                with lock:
                    proxy.reads[name] += 1
                proxy.before(name)
            connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=60)
            connection.request(self.command, self.path, body or None, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(key, value)
            length = answer.getheader("Content-Length") or str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            sent = proxy.change(name, data) if is_read and answer.status < 300 else data
            self.wfile.write(sent)
            if len(sent) < len(data):
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward

        def log_message(self, format: str, *arguments: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of connections that the client or the test ended."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = StoreProxy(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
