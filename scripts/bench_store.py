#!/usr/bin/env python3
"""Print how fast a cache in an object store is read with a tenth of it on this machine, as Markdown.

    scripts/bench_store.py [FOLDER]

Builds a cache of 600 MB in FOLDER, by default a temporary one, and uploads it to Moto's S3 server here, behind a proxy that delays
every request. An epoch of `batches` is compared with one plain download of the same shards, one after the other, without writing
them. Both run in turn. Takes about 3 minutes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from environment import argument_parser, describe, enter
from tables import median, print_head, print_row

import joulecache as jc

IMAGES, SHARDS, ROUNDS, BATCH = 4000, 60, 5, 64
WINDOW_BYTES = 8 << 20
DELAYS_MS = 0, 20


def main(folder: Path) -> None:
    """Print the table."""
    print(describe("numpy", "obstore", "moto"), flush=True)
    jc.precompute(f"synthetic:{IMAGES}", folder / "cache", "decode|resize(224)", shards=SHARDS, val_fraction=0)
    with moto() as port:
        print_head("delay of a request, ms", "plain download, MB/s", "epoch, MB/s", "epoch / download")
        for delay in DELAYS_MS:
            with proxy(port, delay) as endpoint:
                settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
                settings |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "NO_PROXY": "127.0.0.1"}
                os.environ.update(settings, JOULECACHE_STAGE=str(folder / "stage"))
                compare(folder, endpoint, f"bucket-{delay}", delay)


def compare(folder: Path, endpoint: str, bucket: str, delay_ms: int) -> None:
    """Print the row of one delay."""
    from joulecache.pipelines.core.object_store import ObjectFolder

    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()
    objects = ObjectFolder(f"s3://{bucket}/cache")
    for path in sorted((folder / "cache").iterdir()):
        objects.write(path.name, path)
    files = jc.open_cache(folder / "cache").manifest.splits["train"].files
    size, limit = sum(file.bytes for file in files), sum(file.bytes for file in files) // 10 + (1 << 20)
    downloads, epochs = [], []
    for turn in range(ROUNDS + 1):  # the first warms up
        start = time.perf_counter()
        for file in files:
            for _ in objects.chunks(file.name):
                pass
        middle = time.perf_counter()
        shutil.rmtree(folder / "stage", ignore_errors=True)
        read_epoch(objects.url, limit)
        if turn:
            downloads.append(size / 1e6 / (middle - start))
            epochs.append(size / 1e6 / (time.perf_counter() - middle))
    ratios = [epoch / download for epoch, download in zip(epochs, downloads, strict=True)]
    print_row(delay_ms, *(median(each, ".0f") for each in (downloads, epochs)), median(ratios, ".2f"))


def read_epoch(url: str, limit_bytes: int) -> None:
    """Open the cache and read an epoch, in windows that are small enough for the limit."""
    from joulecache.pipelines.loading.config import Budget, LoadConfig
    from joulecache.pipelines.loading.numpy_batches import NumPyBatches
    from joulecache.pipelines.loading.opening import open_steps

    config = LoadConfig("train", BATCH, "blocks", epochs=1, budget=Budget(window_bytes=WINDOW_BYTES))
    reader = open_steps(url, config, verify="open", ops=None, stage_limit_bytes=limit_bytes)
    for _ in NumPyBatches(lambda: reader, config):
        pass


@contextmanager
def moto() -> Iterator[int]:
    """Run Moto's S3 server; return its port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            yield port
        finally:
            server.kill()


@contextmanager
def proxy(port: int, delay_ms: int) -> Iterator[str]:
    """Run a proxy that delays every request, in another process; return its URL."""
    here = free_port()
    with subprocess.Popen([sys.executable, __file__, "--proxy", str(here), str(port), str(delay_ms)]) as server:
        try:
            wait_for(here)
            yield f"http://127.0.0.1:{here}"
        finally:
            server.kill()


async def serve(here: int, there: int, delay_s: float) -> None:
    """Forward connections, with a delay at the start of every request."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                if delay_s and data.startswith((b"GET ", b"PUT ", b"HEAD ")):
                    await asyncio.sleep(delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", there)
        await asyncio.gather(forward(reader, other_writer, delay_s), forward(other_reader, writer, 0))

    server = await asyncio.start_server(connect, "127.0.0.1", here, limit=1 << 20)
    await server.serve_forever()


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait for a server."""
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


if __name__ == "__main__":
    match sys.argv[1:]:  # the first case is a child process of the last
        case ["--proxy", here, there, delay_ms]:
            asyncio.run(serve(int(here), int(there), int(delay_ms) / 1000))
        case _:
            enter()
            parser = argument_parser(__doc__)
            parser.add_argument("folder", nargs="?", type=Path)
            with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as temporary:
                main(Path(temporary))
