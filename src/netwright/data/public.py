"""Public sets of pictures and graphs by name: MNIST and its kin, CIFAR, Planetoid, and cut-down copies of two."""

import gzip
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from netwright import checks
from netwright.data import planetoid
from netwright.data.download import RemoteFile, cache_folder, data_folder, locate
from netwright.data.raw import Raw
from netwright.data.splits import Task


@dataclass(frozen=True)
class PublicSet:
    """A data set that its authors publish.

    Attributes:
        about: What it is, in one line.
        files: Its original files.
        folders: Where below NETWRIGHT_DATA the files may lie.
        read: Makes the data out of the paths of the files, by their names.
    """

    about: str
    files: tuple[RemoteFile, ...]
    folders: tuple[str, ...]
    read: Callable[[dict[str, Path]], Raw]


CUT_DOWN: dict[str, str] = {
    "mnist-10k": "the 10,000 test digits of MNIST, gray, 28×28 (file mnist-10k.npz in NETWRIGHT_DATA)",
    "cifar10-12k": "10,000 training and 2,000 test pictures of CIFAR-10, colour, 32×32 (file cifar10-12k.npz in "
    "NETWRIGHT_DATA)",
}


def read_public(name: str) -> Raw:
    """Read one of :data:`PUBLIC`, from a folder of the user's if possible, downloading it if not."""
    entry = PUBLIC[name]
    return entry.read(locate(name, entry.files, entry.folders))


def cut_down_file(name: str) -> Path:
    """Path of one of :data:`CUT_DOWN`, which are never downloaded."""
    shared, cache = data_folder(), cache_folder()
    for folder in (shared, cache):
        if folder is not None and (folder / f"{name}.npz").is_file():
            return folder / f"{name}.npz"
    full = {"mnist-10k": "mnist", "cifar10-12k": "cifar10"}[name]
    where = "is not set" if shared is None else f"is {shared}"
    raise checks.InputError(
        f"data set {name!r} needs {name}.npz, which is not there and cannot be downloaded. Do one of these: set "
        f"NETWRIGHT_DATA (which {where}) to a folder that has {name}.npz; put the file into {cache}; take the full "
        f"set {full!r}, which can be downloaded"
    )


def read_mnist_like(paths: dict[str, Path], classes: tuple[str, ...]) -> Raw:
    """Read the four IDX files of MNIST or of a set in its format."""
    parts = {}
    for part in ("train", "t10k"):
        images = read_idx(paths[f"{part}-images-idx3-ubyte.gz"], dimensions=3)
        labels = read_idx(paths[f"{part}-labels-idx1-ubyte.gz"], dimensions=1)
        parts[part] = images[:, None], labels.astype(np.int64)
    return _with_test(*parts["train"], *parts["t10k"], classes)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: two zeros, the type 8, the number of dimensions, the sizes, the bytes."""
    content = gzip.decompress(path.read_bytes())
    header = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:header], dtype=">u4").tolist())
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != header + int(np.prod(shape)):
        checks.fail(f"{path} must be an IDX file of bytes in {dimensions} dimensions", f"{content[:header]!r} …")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def read_cifar(paths: dict[str, Path]) -> Raw:
    """Read the binary archive of CIFAR-10 or CIFAR-100 (fine labels); the pickled ones are never read."""
    (path,) = paths.values()
    hundred = "100" in path.name
    train = ["train.bin"] if hundred else [f"data_batch_{i}.bin" for i in range(1, 6)]
    test = "test.bin" if hundred else "test_batch.bin"
    names_file = "fine_label_names.txt" if hundred else "batches.meta.txt"
    with tarfile.open(path) as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}

        def content(name: str) -> bytes:
            stream = archive.extractfile(members[name])
            assert stream is not None
            return stream.read()

        records = [_cifar_records(b"".join(content(name) for name in group), hundred) for group in (train, [test])]
        classes = tuple(content(names_file).decode().split())
    return _with_test(*records[0], *records[1], classes)


def _cifar_records(content: bytes, hundred: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A record is the label (for CIFAR-100 after the coarse label) and 1,024 red, green and blue bytes."""
    labels = 2 if hundred else 1
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, labels + 3 * 32 * 32)
    return records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1].astype(np.int64)


def _with_test(
    train_images: NDArray[np.uint8],
    train_labels: NDArray[np.int64],
    test_images: NDArray[np.uint8],
    test_labels: NDArray[np.int64],
    classes: tuple[str, ...],
) -> Raw:
    first_test, total = len(train_images), len(train_images) + len(test_images)
    return Raw(
        np.concatenate([train_images, test_images]),
        np.concatenate([train_labels, test_labels]),
        Task.IMAGE_CLASSIFICATION,
        classes,
        test=np.arange(first_test, total),
    )


def _mnist_like(about: str, folder: str, url: str, hashes: tuple[str, ...], classes: tuple[str, ...]) -> PublicSet:
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    files = tuple(RemoteFile(name, f"{url}{name}", f"md5:{digest}") for name, digest in zip(names, hashes, strict=True))
    own = folder.lower().replace("fashionmnist", "fashion-mnist")
    return PublicSet(about, files, (own, f"{folder}/raw"), lambda paths: read_mnist_like(paths, classes))


def _cifar(about: str, name: str, digest: str) -> PublicSet:
    archive = f"cifar-{name.removeprefix('cifar')}-binary.tar.gz"
    file = RemoteFile(archive, f"https://www.cs.toronto.edu/~kriz/{archive}", f"md5:{digest}")
    return PublicSet(about, (file,), (name, "."), read_cifar)


def _citations(about: str, name: str) -> PublicSet:
    def read(paths: dict[str, Path]) -> Raw:
        return planetoid.read_planetoid(paths, name.lower())

    return PublicSet(about, planetoid.files(name.lower()), (f"planetoid/{name}/raw", f"{name}/raw", name.lower()), read)


PUBLIC: dict[str, PublicSet] = {
    "mnist": _mnist_like(
        "70,000 hand-written digits, gray, 28×28 (LeCun, Cortes and Burges)",
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        tuple("0123456789"),
    ),
    "fashion-mnist": _mnist_like(
        "70,000 pieces of clothing of 10 kinds, gray, 28×28 (Xiao, Rasul and Vollgraf 2017)",
        "FashionMNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "kmnist": _mnist_like(
        "70,000 cursive Japanese characters of 10 kinds, gray, 28×28 (Clanuwat et al. 2018)",
        "KMNIST",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    "cifar10": _cifar(
        "60,000 pictures of 10 kinds of things, colour, 32×32 (Krizhevsky 2009)",
        "cifar10",
        "c32a1d4ab5d03f1284b67883e8d87530",
    ),
    "cifar100": _cifar(
        "60,000 pictures of 100 kinds of things, colour, 32×32 (Krizhevsky 2009)",
        "cifar100",
        "03b5dce01913d631647c71ecec9e9cb8",
    ),
    "cora": _citations("2,708 papers of 7 fields, 5,278 citations (Planetoid, Yang et al. 2016)", "Cora"),
    "citeseer": _citations("3,327 papers of 6 fields, 4,552 citations (Planetoid, Yang et al. 2016)", "CiteSeer"),
    "pubmed": _citations("19,717 papers of 3 fields, 44,324 citations (Planetoid, Yang et al. 2016)", "PubMed"),
}


__all__ = ["CUT_DOWN", "PUBLIC", "PublicSet", "cut_down_file", "read_public"]
