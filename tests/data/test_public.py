"""Tests of ``netwright.data.public`` and ``netwright.data.download``, with small files in the published formats."""

import dataclasses
import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from netwright.checks import InputError
from netwright.data import Task, download, load, public
from netwright.data.download import RemoteFile

rng = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes(), mtime=0)


def mnist_files() -> dict[str, bytes]:
    files = {}
    for part, samples in (("train", 60), ("t10k", 20)):
        files[f"{part}-images-idx3-ubyte.gz"] = idx(rng.integers(0, 256, (samples, 28, 28)))
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(np.arange(samples) % 10)
    return files


def cifar_archive(hundred: bool) -> bytes:
    classes = 100 if hundred else 10
    folder = "cifar-100-binary" if hundred else "cifar-10-batches-bin"
    names = ["train.bin", "test.bin"] if hundred else [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    meta = "fine_label_names.txt" if hundred else "batches.meta.txt"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for name in names:
            labels = np.arange(2 * classes)[:, None] % classes
            columns = [labels // 5, labels] if hundred else [labels]
            pixels = np.repeat(labels, 3072, axis=1)
            pixels[:, 1024:2048] = 200  # all green
            add(name, np.concatenate([*columns, pixels], axis=1).astype(np.uint8).tobytes())
        add(meta, "\n".join(f"kind{i}" for i in range(classes)).encode() + b"\n\n")
    return stream.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no NETWRIGHT_DATA."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(download, "user_cache_path", lambda _: folder)
    monkeypatch.delenv("NETWRIGHT_DATA", raising=False)
    return folder / "data"


Publish = Callable[[str, dict[str, bytes]], Path]


@pytest.fixture
def publish(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publish]:
    """Put files on a server of this machine in place of those of a public set; returns the folder that is served."""
    root = tmp_path / "server"
    root.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root)) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()

        def publish(name: str, files: dict[str, bytes]) -> Path:
            for file, content in files.items():
                (root / file).write_bytes(content)
            url = f"http://127.0.0.1:{server.server_port}/"
            remote = tuple(
                RemoteFile(file, url + file, f"md5:{hashlib.md5(content).hexdigest()}")
                for file, content in files.items()
            )
            monkeypatch.setitem(public.PUBLIC, name, dataclasses.replace(public.PUBLIC[name], files=remote))
            return root

        yield publish
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
def test_mnist_and_its_kin(name: str, publish: Publish, cache: Path) -> None:
    files = mnist_files()
    publish(name, files)
    splits = load(name)
    assert splits.task is Task.IMAGE_CLASSIFICATION
    assert splits.input_shape == (1, 28, 28)
    assert splits.outputs == 10
    assert (len(splits.train), len(splits.val), len(splits.test)) == (50, 10, 20)
    assert splits.test.targets.tolist() == [*range(10)] * 2
    assert {path.name for path in (cache / name).iterdir()} == set(files)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar(name: str, classes: int, publish: Publish) -> None:
    (file,) = public.PUBLIC[name].files
    publish(name, {file.name: cifar_archive(classes == 100)})
    splits = load(name)
    assert splits.input_shape == (3, 32, 32)
    assert splits.classes == tuple(f"kind{i}" for i in range(classes))
    assert len(splits.test) == 2 * classes
    assert splits.test.targets.bincount().tolist() == [2] * classes
    red, green, blue = splits.test.inputs.unbind(1)
    assert not green.any()  # constant
    assert (red == blue).all()
    brightness = red.mean((1, 2))
    assert (brightness[:classes].diff() > 0).all()


def test_what_is_in_the_cache_is_not_fetched_again(publish: Publish) -> None:
    root = publish("mnist", mnist_files())
    load("mnist")
    for path in root.iterdir():
        path.unlink()
    assert len(load("mnist").test) == 20


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
def test_the_folder_of_the_user_comes_first(
    folder: str, publish: Publish, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = mnist_files()
    publish("mnist", files)
    shared = tmp_path / "shared"
    (shared / folder).mkdir(parents=True)
    for name, content in files.items():
        (shared / folder / name).write_bytes(content)
    monkeypatch.setenv("NETWRIGHT_DATA", str(shared))
    assert len(load("mnist").test) == 20
    assert not cache.exists()


def test_all_three_ways_are_named_if_none_works(publish: Publish, cache: Path) -> None:
    root = publish("mnist", mnist_files())
    (root / "t10k-images-idx3-ubyte.gz").unlink()
    message = (
        r"data set 'mnist' needs train-images.*, t10k-labels-idx1-ubyte\.gz, not found here, and the download failed "
        r"\(404.*\)\. Do one of these: set NETWRIGHT_DATA to a folder with mnist/t10k-images-idx3-ubyte\.gz and the 3 "
        rf"others; put the same into {cache}/mnist; connect to the network for http://127.*t10k-images"
    )
    with pytest.raises(InputError, match=message):
        load("mnist")


def test_no_network_at_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RemoteFile("cifar-10-binary.tar.gz", "http://127.0.0.1:9/cifar-10-binary.tar.gz", "md5:0")
    monkeypatch.setitem(public.PUBLIC, "cifar10", dataclasses.replace(public.PUBLIC["cifar10"], files=(file,)))
    with pytest.raises(
        InputError,
        match=r"download failed \(no connection to 127\.0\.0\.1\).*a folder with cifar10/cifar-10-binary",
    ):
        load("cifar10")
    assert not list(cache.rglob("*.*"))


def test_a_damaged_download_is_refused_and_not_kept(publish: Publish, cache: Path) -> None:
    root = publish("mnist", mnist_files())
    (root / "train-images-idx3-ubyte.gz").write_bytes(b"a page that asks to log in")
    with pytest.raises(
        InputError, match=r"http://.*train-images.* is not the original file: its md5 must be .*try again"
    ):
        load("mnist")
    assert not list(cache.rglob("*.*"))


def test_a_damaged_copy_is_refused(publish: Publish, cache: Path) -> None:
    publish("mnist", mnist_files())
    load("mnist")
    path = cache / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match=rf"{path} is not the original file: its md5 must be .* delete it"):
        load("mnist")


def test_hashes_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    for known in (
        "md5:b1946ac92492d2347c6235b4d2611184",
        "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "git:ce013625030ba8dba906f756967f9e9ca394464a",
    ):
        download._check_hash(path, RemoteFile("hello", "", known))
        with pytest.raises(InputError, match="is not the original file"):
            download._check_hash(path, RemoteFile("hello", "", known[:-1] + "x"))


def test_every_file_has_a_whole_hash() -> None:
    lengths = {"md5": 32, "sha256": 64, "git": 40}
    files = [file for entry in public.PUBLIC.values() for file in entry.files]
    assert len(files) == 3 * 4 + 2 + 3 * 8
    assert len({file.hash for file in files}) == len(files)
    for file in files:
        algorithm, digest = file.hash.split(":")
        assert len(digest) == lengths[algorithm]
        assert file.url.endswith(f"/{file.name}")


def test_progress_is_shown(
    publish: Publish, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("mnist", mnist_files())
    monkeypatch.setattr(download.sys.stderr, "isatty", lambda: True, raising=False)
    load("mnist")
    assert "mnist/train-images-idx3-ubyte.gz" in capsys.readouterr().err


def test_cut_down_sets(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError,
        match=r"'mnist-10k' needs mnist-10k.npz, .*NETWRIGHT_DATA \(which is not set\).*put the file into .*'mnist'",
    ):
        load("mnist-10k")
    monkeypatch.setenv("NETWRIGHT_DATA", str(tmp_path))
    with pytest.raises(InputError, match=rf"NETWRIGHT_DATA \(which is {tmp_path}\)"):
        load("cifar10-12k")
    images, labels = rng.integers(0, 256, (100, 28, 28)).astype(np.uint8), (np.arange(100) % 10).astype(np.uint8)
    np.savez(tmp_path / "mnist-10k.npz", images=images, labels=labels)
    splits = load("mnist-10k")
    assert (splits.name, splits.input_shape) == ("mnist-10k", (1, 28, 28))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (60, 20, 20)
    cache.mkdir(parents=True)
    (tmp_path / "mnist-10k.npz").rename(cache / "mnist-10k.npz")
    assert len(load("mnist-10k").train) == 60


def test_the_variable_must_name_a_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWRIGHT_DATA", "/no/such/folder")
    with pytest.raises(InputError, match="NETWRIGHT_DATA must name a folder, got '/no/such/folder'"):
        load("mnist")


def test_a_file_that_is_no_idx(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(idx(np.zeros((3, 2))))
    assert public.read_idx(path, dimensions=2).shape == (3, 2)
    with pytest.raises(InputError, match="must be an IDX file of bytes in 3 dimensions"):
        public.read_idx(path, dimensions=3)
