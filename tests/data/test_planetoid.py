"""Tests of ``netwright.data.planetoid``: a small graph in the published format, and the real ones where they are."""

import collections
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from netwright.checks import InputError
from netwright.data import Task, load
from netwright.data.loading import prepare
from netwright.data.planetoid import VAL_NODES, RestrictedUnpickler, read_planetoid

TRAIN, OTHER, WORDS, CLASSES = 6, VAL_NODES, 7, 3
FIRST_TEST = TRAIN + OTHER
TEST = np.array([FIRST_TEST + 2, FIRST_TEST, FIRST_TEST + 3])  # in disorder, and one node is missing


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    words = (rng.random((FIRST_TEST + 3, WORDS)) < 0.5).astype(np.float32)
    words[:, 0] = 1
    labels = np.eye(CLASSES, dtype=np.int32)[np.arange(FIRST_TEST + 3) % CLASSES]
    graph = collections.defaultdict(list, {0: [1, 1, 0], 1: [0, 2], 2: [1], FIRST_TEST: [0]})
    content = {
        "x": sparse.csr_matrix(words[:TRAIN]),
        "tx": sparse.csr_matrix(words[FIRST_TEST:]),
        "allx": sparse.csr_matrix(words[:FIRST_TEST]),
        "y": labels[:TRAIN],
        "ty": labels[FIRST_TEST:],
        "ally": labels[:FIRST_TEST],
        "graph": graph,
    }
    found = {}
    for kind, value in content.items():
        found[f"ind.citeseer.{kind}"] = path = tmp_path / f"ind.citeseer.{kind}"
        path.write_bytes(pickle.dumps(value, protocol=3))
    found["ind.citeseer.test.index"] = path = tmp_path / "ind.citeseer.test.index"
    path.write_text("\n".join(map(str, TEST)))
    found["words"], found["labels"] = words, labels  # type: ignore[assignment]
    return found


def test_a_graph_with_an_isolated_node(paths: dict[str, Path]) -> None:
    words, labels = paths.pop("words"), paths.pop("labels")
    splits = prepare(read_planetoid(paths, "citeseer"), "citeseer")
    assert splits.task is Task.NODE_CLASSIFICATION
    assert (len(splits.train), len(splits.val), len(splits.test)) == (TRAIN, VAL_NODES, 3)
    assert splits.train.inputs.tolist() == list(range(TRAIN))
    assert splits.test.inputs.tolist() == sorted(TEST.tolist())
    assert splits.features is not None
    assert splits.features.shape == (FIRST_TEST + 4, WORDS)
    assert splits.input_shape == (WORDS,)
    # row k of tx belongs to the k-th line of test.index; the node in the gap has nothing
    for row, node in enumerate(TEST):
        expected = torch.tensor(words[FIRST_TEST + row]) / words[FIRST_TEST + row].sum()
        torch.testing.assert_close(splits.features[node], expected)
        place = splits.test.inputs.tolist().index(node)
        assert splits.test.targets[place] == labels[FIRST_TEST + row].argmax()
    assert not splits.features[FIRST_TEST + 1].any()
    present = splits.features.sum(1)
    torch.testing.assert_close(present[present > 0], torch.ones(FIRST_TEST + 3))


def test_edges_go_both_ways_once_without_loops(paths: dict[str, Path]) -> None:
    edges = read_planetoid(paths, "citeseer").edges
    assert edges is not None
    assert edges.T.tolist() == [[0, 1], [0, FIRST_TEST], [1, 0], [1, 2], [2, 1], [FIRST_TEST, 0]]


def test_a_subset_of_the_training_nodes(paths: dict[str, Path]) -> None:
    splits = prepare(read_planetoid(paths, "citeseer"), "citeseer", seed=1, train=3)
    assert sorted(splits.train.targets.tolist()) == [0, 1, 2]
    assert len(splits.val) == VAL_NODES


def test_map_changes_the_features_of_a_graph(paths: dict[str, Path]) -> None:
    splits = prepare(read_planetoid(paths, "citeseer"), "citeseer")
    mapped = splits.map(lambda features: features[:, :2])
    assert mapped.input_shape == (2,)
    assert torch.equal(mapped.train.inputs, splits.train.inputs)


class Malicious:
    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("function", "argument"), [(os.system, "touch run"), (eval, "open('run', 'w')"), (Path.touch, Path("run"))]
)
def test_a_malicious_pickle_is_refused(
    function: object, argument: object, paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hidden = collections.defaultdict(list, {0: [Malicious(function, argument)]})
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        paths["ind.citeseer.graph"].write_bytes(pickle.dumps(hidden, protocol=protocol))
        with pytest.raises(InputError, match=r"ind\.citeseer\.graph cannot be read: it asks for .*nothing was run"):
            read_planetoid(paths, "citeseer")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "name", [b"numpy\nload", b"builtins\ngetattr", b"numpy.core.multiarray\nscalar", b"os\nsystem"]
)
def test_nothing_but_the_listed_names(name: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="has no use for"):
        RestrictedUnpickler(io.BytesIO(b"c" + name + b"\n.")).load()


def test_a_pickle_that_refers_outside_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError):
        RestrictedUnpickler(io.BytesIO(b"Psomething\n.")).load()


@pytest.mark.parametrize(
    ("name", "folder", "nodes", "words", "edges", "classes"),
    [("cora", "Cora", 2708, 1433, 10556, 7), ("citeseer", "CiteSeer", 3327, 3703, 9104, 6)],
)
def test_the_real_graphs(name: str, folder: str, nodes: int, words: int, edges: int, classes: int) -> None:
    """The published counts; the original files are checked by their hashes on the way."""
    shared = os.environ.get("NETWRIGHT_DATA")
    if shared is None or not (Path(shared) / "planetoid" / folder).is_dir():
        pytest.skip("needs planetoid/ in NETWRIGHT_DATA")
    splits = load(name)
    assert splits.features is not None
    assert splits.edges is not None
    assert splits.features.shape == (nodes, words)
    assert splits.edges.shape == (2, edges)
    assert splits.train.targets.bincount().tolist() == [20] * classes
    assert (len(splits.val), len(splits.test)) == (500, 1000)
    isolated = set(range(nodes)) - set(splits.edges.flatten().tolist())
    assert len(isolated) == (48 if name == "citeseer" else 0)
    assert (splits.features.sum(1) == 0).sum() == (15 if name == "citeseer" else 0)
