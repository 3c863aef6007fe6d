"""The citation graphs Cora, CiteSeer and PubMed in the files and with the public split of Planetoid.

Yang, Cohen, Salakhutdinov 2016, "Revisiting Semi-Supervised Learning with Graph Embeddings", arXiv:1603.08861. The
files are pickles of Python 2. They are read by an unpickler that makes arrays, sparse matrices, lists and nothing else.
"""

import pickle
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from netwright import checks
from netwright.data.download import RemoteFile
from netwright.data.raw import Raw
from netwright.data.splits import Task

URL = "https://github.com/kimiyoung/planetoid/raw/master/data/"
VAL_NODES = 500

# of the files in the authors' repository; one of them is known by the number of its git blob alone
HASHES: dict[str, dict[str, str]] = {
    "cora": {
        "x": "sha256:23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "tx": "sha256:b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "allx": "sha256:9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "y": "sha256:94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        "ty": "sha256:41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "ally": "sha256:2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "graph": "sha256:58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        "test.index": "sha256:297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    },
    "citeseer": {
        "x": "sha256:d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "tx": "sha256:539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "allx": "sha256:2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "y": "sha256:8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "ty": "sha256:55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "ally": "sha256:f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "graph": "sha256:d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        "test.index": "sha256:2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    },
    "pubmed": {
        "x": "sha256:fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
        "tx": "sha256:4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
        "allx": "git:3b86bccf08111c37c632a9dd8ab63db25ea76361",
        "y": "sha256:e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
        "ty": "sha256:ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
        "ally": "sha256:0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
        "graph": "sha256:5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
        "test.index": "sha256:b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
    },
}


def files(name: str) -> tuple[RemoteFile, ...]:
    """The eight original files of one of :data:`HASHES`."""
    return tuple(
        RemoteFile(f"ind.{name}.{part}", f"{URL}ind.{name}.{part}", digest) for part, digest in HASHES[name].items()
    )


def read_planetoid(paths: dict[str, Path], name: str) -> Raw:
    r"""Read a citation graph with its public split: 20 training nodes a class, 500 for validation, 1,000 for testing.

    Inputs are the numbers of the nodes. ``features`` holds one row for each node of the graph, divided by its sum as
    in Kipf and Welling 2017 (arXiv:1609.02907). ``edges`` holds every edge in both directions, without repetitions and
    loops. CiteSeer has 15 nodes without features and edges: they stand in the graph with features of 0, and in no part.

    Args:
        paths: The files by their names.
        name: ``cora``, ``citeseer`` or ``pubmed``.
    """
    part = {kind: paths[f"ind.{name}.{kind}"] for kind in HASHES[name]}
    x, tx, allx, y, ty, ally, graph = (_load(part[kind]) for kind in ("x", "tx", "allx", "y", "ty", "ally", "graph"))
    test = np.loadtxt(part["test.index"], dtype=np.int64)

    # the rows of tx and ty belong to the nodes in the order of the file; CiteSeer leaves some nodes out
    nodes = max(int(test.max()) + 1, allx.shape[0])
    features = np.zeros((nodes, allx.shape[1]), dtype=np.float32)
    features[: allx.shape[0]] = allx.toarray()
    features[test] = tx.toarray()
    labels = np.zeros((nodes, ally.shape[1]), dtype=np.int64)
    labels[: len(ally)] = ally
    labels[test] = ty
    features /= np.maximum(features.sum(1, keepdims=True), np.finfo(np.float32).tiny)

    train_nodes = x.shape[0]
    chosen = np.concatenate([np.arange(train_nodes + VAL_NODES), np.sort(test)])
    return Raw(
        chosen,
        labels[chosen].argmax(1),
        Task.NODE_CLASSIFICATION,
        tuple(str(i) for i in range(y.shape[1])),
        val=np.arange(train_nodes, train_nodes + VAL_NODES),
        test=np.arange(train_nodes + VAL_NODES, len(chosen)),
        features=features,
        edges=_edges(graph, nodes),
    )


def _edges(neighbours: dict[int, list[int]], nodes: int) -> NDArray[np.int64]:
    """Edges in both directions ``(2, number)``, sorted, each once, no loops."""
    degrees = [len(others) for others in neighbours.values()]
    start = np.repeat(np.fromiter(neighbours, dtype=np.int64), degrees)
    end = np.concatenate([np.asarray(others, dtype=np.int64) for others in neighbours.values()])
    pairs = np.concatenate([start * nodes + end, end * nodes + start])
    edges = np.stack(np.divmod(np.unique(pairs), nodes))
    return edges[:, edges[0] != edges[1]]


def _load(path: Path) -> Any:
    """Unpickle a file of Planetoid: an array, a sparse matrix or a dictionary of lists."""
    with path.open("rb") as file:
        try:
            content = RestrictedUnpickler(file).load()
        except pickle.UnpicklingError as error:
            raise checks.InputError(f"{path} cannot be read: {error}") from error
    if isinstance(content, SimpleNamespace):
        state = vars(content)
        return sparse.csr_matrix(
            (state["data"], state["indices"], state["indptr"]), shape=state.get("_shape", state.get("shape"))
        )
    return content


class RestrictedUnpickler(pickle.Unpickler):
    """Makes numpy arrays, the fields of CSR matrices, lists and dictionaries of lists, and refuses everything else.

    A pickle can name any function and call it; here the names below are all there is, and none of them runs code.
    """

    # what numpy pickles an array with, wherever this version of numpy keeps it
    _new_array = np.empty(0).__reduce__()[0]
    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "defaultdict"): defaultdict,
        ("__builtin__", "list"): list,
        ("builtins", "list"): list,
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): _new_array,
        ("numpy._core.multiarray", "_reconstruct"): _new_array,
        ("scipy.sparse.csr", "csr_matrix"): SimpleNamespace,
        ("scipy.sparse._csr", "csr_matrix"): SimpleNamespace,
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which a file of Planetoid has no use for; nothing was run"
            ) from None


__all__ = ["HASHES", "RestrictedUnpickler", "files", "read_planetoid"]
