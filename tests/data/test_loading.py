"""Tests of ``netwright.data.loading``: names, options, and what goes for every kind of source."""

from pathlib import Path

import numpy as np
import pytest
import torch

from netwright.checks import InputError
from netwright.data import Splits, Task, known_sets, load
from netwright.data.bundled import BUNDLED


def same(a: Splits, b: Splits) -> bool:
    return all(
        torch.equal(getattr(a, part).inputs, getattr(b, part).inputs)
        and torch.equal(getattr(a, part).targets, getattr(b, part).targets)
        for part in ("train", "val", "test")
    )


@pytest.mark.parametrize(
    ("name", "task", "shape", "outputs", "samples"),
    [
        ("digits", Task.IMAGE_CLASSIFICATION, (1, 8, 8), 10, 1797),
        ("iris", Task.TABULAR_CLASSIFICATION, (4,), 3, 150),
        ("wine", Task.TABULAR_CLASSIFICATION, (13,), 3, 178),
        ("breast-cancer", Task.TABULAR_CLASSIFICATION, (30,), 2, 569),
        ("diabetes", Task.TABULAR_REGRESSION, (10,), 1, 442),
    ],
)
def test_bundled_sets(name: str, task: Task, shape: tuple[int, ...], outputs: int, samples: int) -> None:
    splits = load(name, seed=4)
    assert (splits.name, splits.task, splits.input_shape, splits.outputs) == (name, task, shape, outputs)
    parts = (splits.train, splits.val, splits.test)
    assert sum(map(len, parts)) == samples
    assert len(splits.val) == len(splits.test) == round(samples * 0.2)
    for part in parts:
        assert part.inputs.dtype == torch.float32
        assert part.inputs.shape[1:] == shape
        assert part.targets.dtype == (torch.int64 if task.is_classification else torch.float32)
        assert part.is_classification == task.is_classification
    dims = (0, 2, 3) if len(shape) == 3 else 0
    assert splits.train.inputs.mean(dims).abs().max() < 1e-5
    assert len(splits.columns) == (0 if len(shape) == 3 else shape[0])


@pytest.mark.parametrize("name", BUNDLED)
def test_the_seed_decides_everything(name: str) -> None:
    torch.manual_seed(1)
    first = load(name, seed=7)
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002 - the global generator must not matter
    assert same(first, load(name, seed=7))
    assert not same(first, load(name, seed=8))


def test_a_regression_knows_its_unit() -> None:
    splits = load("diabetes")
    assert {part.target_std for part in (splits.train, splits.val, splits.test)} == {splits.train.target_std}
    assert 60 < splits.train.target_std < 90  # the set's own standard deviation is 77
    assert splits.train.targets.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_a_smaller_training_part() -> None:
    whole, part = load("digits", seed=1), load("digits", seed=1, train=100)
    assert len(part.train) == 100
    assert part.train.targets.bincount().tolist() == [10] * 10
    assert torch.equal(part.val.targets, whole.val.targets)
    assert torch.equal(part.test.targets, whole.test.targets)
    # its statistics come from those 100 alone
    assert part.train.inputs.mean().abs() < 1e-5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("diggits", "unknown data set 'diggits'; did you mean 'digits'"),
        ("breast_cancer", "did you mean 'breast-cancer'"),
        ("MNIST", "did you mean 'mnist'"),
        ("fashionmnist", "did you mean 'fashion-mnist'"),
        ("zzz", "unknown data set 'zzz'; known are: .*cora.*wine"),
        ("", "unknown data set ''"),
        ("no/such/place/a.csv", "no such file: no/such/place/a.csv; the folder no/such/place does not exist either"),
        ("nothing.csv", "no such file: nothing.csv; looked in /"),
    ],
)
def test_unknown_sources(given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load(given)


def test_a_file_of_a_similar_name_is_offered(tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"no such file: .*seles\.csv; did you mean 'sales\.csv'"):
        load(tmp_path / "seles.csv")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        InputError, match=r"must be a \.csv, \.tsv or \.npz file, or a folder of pictures, got .*parquet"
    ):
        load(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "x"}, "target is for CSV files only; leave it out, got target='x'"),
        ({"impute": True}, "impute is for CSV files only"),
        ({"drop": ["x"]}, "drop is for CSV files only"),
        ({"image_size": 32}, "image_size is for folders of pictures only"),
        ({"task": "regression"}, "task is for CSV and NPZ files only"),
        ({"task": "regresion"}, "unknown task 'regresion'; did you mean 'regression'"),
    ],
)
def test_options_that_do_not_apply(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("digits", **options)


def test_every_named_set_is_described() -> None:
    sets = known_sets()
    assert {"digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "cora", "citeseer", "pubmed"} < set(
        sets
    )
    assert {"mnist-10k", "cifar10-12k"} < set(sets)
    assert all(sets.values())


def test_a_name_comes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris").mkdir()
    assert load("iris").outputs == 3
    with pytest.raises(InputError, match="sub-folder of pictures"):
        load("./iris")


@pytest.mark.parametrize("name", ["digits", "breast-cancer"])
def test_inputs_go_back_to_the_units_of_the_user(name: str) -> None:
    splits = load(name)
    own = splits.in_user_units(splits.test.inputs)
    # whole numbers of brightness, and measures that are all positive, as scikit-learn hands them out
    assert torch.allclose(own, own.round(), atol=1e-4) if name == "digits" else own.min() > -1e-6
    torch.testing.assert_close(splits.normalised(own), splits.test.inputs)


def test_units_are_lost_by_a_map() -> None:
    with pytest.raises(InputError, match="units are lost"):
        load("digits").map(lambda x: x[..., ::2, ::2]).in_user_units(torch.zeros(1, 1, 4, 4))
