"""A server with the part of the XML API of Google's object store that obstore uses; its objects are in memory.

Both fake-gcs-server and gcp-storage-emulator lack it. From https://cloud.google.com/storage/docs/xml-api/overview: each write creates
the next generation of an object; ``x-goog-if-generation-match`` overwrites only the generation that it names, 0 for no object.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

MODIFIED = "1970-01-01T00:00:00.000Z"  # in listings; headers have formatdate(0)
PAGE = 3  # objects per page of a listing: few, so that there are several pages


@dataclass(frozen=True)
class Stored:
    data: bytes
    generation: int

    @property
    def headers(self) -> dict[str, str]:
        tag = f'"{hashlib.md5(self.data).hexdigest()}"'
        return {"ETag": tag, "x-goog-generation": str(self.generation), "Last-Modified": formatdate(0, usegmt=True)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: with two, each answer waits 40 ms for an acknowledgement
    objects: dict[str, Stored]
    lock: threading.Lock
    written = 0

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.lock:
            before = self.objects.get(self.name)
            wanted = self.headers.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != (before.generation if before else 0):
                return self.answer(412)
            type(self).written += 1
            self.objects[self.name] = now = Stored(data, self.written)
        return self.answer(200, headers=now.headers)

    def do_GET(self) -> None:
        if "/" not in self.name:
            return self.answer(200, self.listing())
        found = self.objects.get(self.name)
        if found is None:
            return self.answer(404)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(200, found.data, found.headers)
        first, last = int(asked[1]), min(int(asked[2] or len(found.data)), len(found.data) - 1)
        ends = {"Content-Range": f"bytes {first}-{last}/{len(found.data)}"}
        return self.answer(206, found.data[first : last + 1], found.headers | ends)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        self.answer(204 if self.objects.pop(self.name, None) else 404)

    @property
    def name(self) -> str:
        """``bucket/name``, or ``bucket`` alone."""
        return unquote(urlsplit(self.path).path).strip("/")

    def listing(self) -> bytes:
        asked = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        inside = f"{self.name}/"
        after = asked.get("continuation-token", "")
        names = sorted(name.removeprefix(inside) for name in self.objects if name.startswith(inside))
        prefix = asked.get("prefix", "")
        names = [name for name in names if name.startswith(prefix) and name > after]
        folders: list[str] = []
        if "delimiter" in asked:  # folders are on the first page, whatever its limit
            folders = sorted(
                {prefix + name[len(prefix) :].split("/")[0] + "/" for name in names if "/" in name[len(prefix) :]}
            )
            names = [name for name in names if "/" not in name[len(prefix) :]]
            folders = [] if after else folders
        page = names[:PAGE]
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if names[PAGE:] else ""
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(self.objects[inside + name].data)}</Size>"
            f"<LastModified>{MODIFIED}</LastModified><ETag>{escape(self.objects[inside + name].headers['ETag'])}</ETag></Contents>"
            for name in page
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        return f"<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>{token}{contents}</ListBucketResult>".encode()

    def answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def google_storage() -> Iterator[str]:
    """Run a server on which every bucket exists and is empty; yield its URL."""
    state = {"objects": {}, "lock": threading.Lock()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Server", (Handler,), state))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
