"""Fixtures for the whole suite: small sources, caches and models. Those of session scope are read-only."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from caches import OPTIONS, build
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image
from processes import wait_until
from sources import add

from joulecache.pipelines import cli
from joulecache.transforms.images import as_image

if TYPE_CHECKING:
    from joulecache.pipelines.auditing.results import Audit

if TYPE_CHECKING:
    import keras

settings.register_profile("no deadline", deadline=None)  # the machine may be busy
settings.load_profile("no deadline")

MakeSource = Callable[[Mapping[str, bytes]], Path]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run joulecache in this process; return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["joulecache", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def short_runs() -> Iterator[None]:
    """Make the command run audits with a small budget."""
    import small_audits

    from joulecache.pipelines.auditing import auditor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auditor, "audit", small_audits.audit)
        yield


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A synthetic photo of 64x48 pixels, as a JPEG of 1 kB."""
    return (Path(__file__).parent / "golden" / "photo.jpg").read_bytes()


@pytest.fixture(scope="session")
def pixels(photo: bytes) -> NDArray[np.uint8]:
    """The 48x64 RGB pixels of `photo`."""
    return np.asarray(Image.open(io.BytesIO(photo)))


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    """Thirty different photos of about 100x80 pixels in three classes, as {path inside a folder: JPEG}."""
    return {f"{('cat', 'dog', 'été')[n % 3]}/{n:02d}.jpg": small_photo(n) for n in range(30)}


def small_photo(number: int, kind: str = "JPEG") -> bytes:
    """Encode blurred noise of about 100x80 pixels."""
    noise = np.random.default_rng(number).integers(0, 256, (8, 10, 3), np.uint8)
    return encoded(Image.fromarray(noise).resize((100 + number % 7, 80 + number % 5)), kind)


def encoded(image: Image.Image | NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    """Return the bytes of an image file."""
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else as_image(image)).save(stream, kind, **options)
    return stream.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files, given as {path inside the folder: bytes}; return the folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, photos: Mapping[str, bytes]) -> Path:
    """The folder of `photos`: `cat/00.jpg` and so on."""
    return write_files(tmp_path_factory.mktemp("photos"), photos)


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 synthetic photos of about 500x375 pixels in two classes: `even/0.jpg`, `odd/1.jpg` and so on."""
    from joulecache.pipelines.source import synthetic_photo

    files = {f"{('even', 'odd')[number % 2]}/{number}.jpg": synthetic_photo(number) for number in range(48)}
    return write_files(tmp_path_factory.mktemp("synthetic"), files)


@pytest.fixture(scope="session")
def photo_cache(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    """A cache of `photos`, built by one thread with `caches.OPTIONS`: two variants of 32x32 pixels in 4 shards."""
    folder = tmp_path_factory.mktemp("photo") / "cache"
    build(photo_folder, folder, workers=1, **OPTIONS)
    return folder


@pytest.fixture(scope="session")
def chain_audit(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> tuple[Audit, Path]:
    """A real audit of `photos`, and its folder: all arms, every workload but fine-tuning, in two blocks. Takes about 15 s."""
    import small_audits

    out = tmp_path_factory.mktemp("audit")
    options: dict[str, Any] = {"pairs": 2, "train_epochs": 2, "epochs": 10, "batch_size": 8, "model": "mlp"}
    return small_audits.audit(photo_folder, small_audits.CHAIN, out, **options), out


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, photo_cache: Path) -> Path:
    """The folder of a training run of one epoch on `photo_cache`; its model is `model.keras`, a small MLP."""
    from joulecache.pipelines import train

    folder = tmp_path_factory.mktemp("run") / "run"
    train(photo_cache, out=folder, epochs=1, model="mlp", batch_size=8)
    return folder


@pytest.fixture(scope="session")
def blob_model() -> keras.Model:
    """The network of `blobs`, trained on 320 of them."""
    import keras
    from blobs import batches, network

    from joulecache.pipelines.models.fitting import compile_model, run_epochs

    keras.utils.set_random_seed(0)
    model = network()
    compile_model(model, 1e-2)
    run_epochs(model, batches(320), epochs=4)
    return model


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeSource:
    """Write files, given as {path inside the folder: bytes}, to a new folder."""
    return lambda files: write_files(tmp_path / "folder", files)


@pytest.fixture
def make_tar(tmp_path: Path) -> MakeSource:
    """Write members, given as {name: bytes}, to a new uncompressed tar."""

    def make(files: Mapping[str, bytes]) -> Path:
        path = tmp_path / "photos.tar"
        with tarfile.open(path, "w") as tar:
            for name, data in files.items():
                add(tar, name, data=data)
        return path

    return make


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run moto's S3 server in another process; return its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with open(tmp_path_factory.mktemp("moto") / "log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
    try:
        wait_until(lambda: answers(url), server)
        yield url
    finally:
        server.kill()
        server.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create a bucket, with its credentials in the environment; return its URL."""
    settings = {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "never-to-be-shown",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "NO_PROXY": "127.0.0.1",
        "JOULECACHE_STAGE": str(tmp_path / "staged"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    name = f"b{os.urandom(8).hex()}"
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=30).close()
    return f"s3://{name}"
