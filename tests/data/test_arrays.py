"""Tests of ``netwright.data.arrays``."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from netwright.checks import InputError
from netwright.data import Task, load
from netwright.data.arrays import channels_first, read_npz

rng = np.random.default_rng(0)
TABLE = rng.normal(size=(40, 3))
CLASSES = np.arange(40) % 4
PICTURES = rng.integers(0, 256, (40, 6, 5, 3)).astype(np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("images", "labels"), ("inputs", "targets"), ("data", "target")])
def test_usual_names(x: str, y: str, file: Path) -> None:
    np.savez(file, **{x: TABLE, y: CLASSES})
    splits = load(file)
    assert splits.task is Task.TABULAR_CLASSIFICATION
    assert (len(splits.train), len(splits.val), len(splits.test)) == (24, 8, 8)
    assert splits.columns == ("x0", "x1", "x2")
    assert splits.classes == ("0", "1", "2", "3")


def test_an_official_test_part(file: Path) -> None:
    np.savez(file, train_x=PICTURES, train_y=CLASSES, test_x=PICTURES[:7], test_y=CLASSES[:7])
    raw = read_npz(file)
    assert raw.test is not None
    assert raw.test.tolist() == list(range(40, 47))
    splits = load(file)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (36, 4, 7)
    assert splits.test.targets.tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_official_parts_of_all_three_kinds(file: Path) -> None:
    parts = {
        f"{part}_{name}": a[:n]
        for part, n in (("train", 40), ("val", 9), ("test", 7))
        for name, a in (("x", TABLE), ("y", CLASSES))
    }
    np.savez(file, **parts)
    splits = load(file)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (40, 9, 7)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((9, 6, 5), np.uint8, (1, 6, 5)),
        ((9, 6, 5), np.float32, (1, 6, 5)),
        ((9, 6, 5, 3), np.uint8, (3, 6, 5)),
        ((9, 6, 5, 3), np.float64, (3, 6, 5)),
        ((9, 6, 5, 1), np.uint8, (1, 6, 5)),
        ((9, 3, 6, 5), np.uint8, (3, 6, 5)),
        ((9, 1, 6, 5), np.float32, (1, 6, 5)),
        ((9, 16, 6, 5), np.float32, (16, 6, 5)),
        ((9, 3, 4, 3), np.uint8, (3, 3, 4)),
        ((9, 3, 4, 3), np.float32, (3, 4, 3)),
    ],
)
def test_where_the_channels_are(shape: tuple[int, ...], dtype: type, expected: tuple[int, ...]) -> None:
    assert channels_first(np.zeros(shape, dtype)).shape == (9, *expected)


def test_pictures_keep_their_pixels(file: Path) -> None:
    np.savez(file, images=PICTURES, labels=CLASSES)
    raw = read_npz(file)
    np.testing.assert_array_equal(raw.inputs[7, :, 2, 4], PICTURES[7, 2, 4])
    splits = load(file)
    assert splits.task is Task.IMAGE_CLASSIFICATION
    assert splits.input_shape == (3, 6, 5)
    assert splits.train.inputs.is_contiguous()
    torch.testing.assert_close(splits.train.inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_names_of_classes(file: Path) -> None:
    np.savez(file, x=TABLE, y=CLASSES, classes=["ant", "bee", "cat", "dog", "eel"])
    assert load(file, train=10).classes == ("ant", "bee", "cat", "dog", "eel")
    np.savez(file, x=TABLE, y=np.array(["ant", "bee"])[CLASSES % 2])
    assert load(file).classes == ("ant", "bee")
    np.savez(file, x=TABLE, y=np.array([b"ant", b"bee"])[CLASSES % 2])
    assert load(file).classes == ("ant", "bee")


def test_regression(file: Path) -> None:
    np.savez(file, x=TABLE, y=TABLE[:, :2] * 7)
    splits = load(file)
    assert splits.task is Task.TABULAR_REGRESSION
    assert splits.outputs == 2
    np.savez(file, x=TABLE, y=CLASSES[:, None])
    assert load(file).outputs == 4
    assert load(file, task="regression").task is Task.TABULAR_REGRESSION


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("unpickled"),)


def test_objects_are_never_unpickled(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(file, x=TABLE, y=np.array([Malicious()] * 40, dtype=object))
    with pytest.raises(InputError, match=r"array 'y' in .* holds Python objects, which are never unpickled.*astype"):
        load(file)
    stream = io.BytesIO()
    pickle.dump(Malicious(), stream)
    file.write_bytes(stream.getvalue())
    with pytest.raises(InputError, match="must be an NPZ file"):
        load(file)
    assert not Path("unpickled").exists()


def test_objects_that_are_not_asked_for_do_no_harm(file: Path) -> None:
    np.savez(file, x=TABLE, y=CLASSES, notes=np.array([None], dtype=object))
    assert len(load(file).test) == 8


def with_one(array: np.ndarray, value: float) -> np.ndarray:
    array = array.astype(float)
    array.flat[3] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": TABLE, "b": CLASSES}, "inputs and targets as x/y, images/labels, .* train_ and test_ .*got a, b"),
        ({}, "got no array"),
        ({"x": TABLE, "y": CLASSES[:-1]}, r"'y' in .* one entry for each of the 40 samples in 'x', got shape \(39,\)"),
        ({"x": TABLE[:, 0], "y": CLASSES}, r"'x' in .* must have shape \(samples, features\).* got shape \(40,\)"),
        ({"x": TABLE[:0], "y": CLASSES[:0]}, r"without zeros, got shape \(0, 3\)"),
        ({"x": TABLE.astype(str), "y": CLASSES}, "'x' in .* must hold real numbers, got type <U"),
        ({"x": TABLE * 1j, "y": CLASSES}, "must hold real numbers, got type complex128"),
        ({"x": TABLE, "y": CLASSES * 1j}, "'y' in .* must hold real numbers or text, got type complex128"),
        (
            {"x": with_one(TABLE, np.nan), "y": CLASSES},
            "'x' in .* must be finite, got 1 values that are NaN or infinite",
        ),
        ({"x": TABLE, "y": with_one(CLASSES, np.inf)}, "'y' in .* must be finite, got 1 values"),
        ({"x": TABLE, "y": CLASSES * 0}, "at least two classes to tell apart, got only '0'"),
        (
            {"x": TABLE, "y": np.eye(4, dtype=int)[CLASSES]},
            r"one number or name a sample .*argmax\(1\)\), got shape \(40, 4\)",
        ),
        ({"x": PICTURES, "y": TABLE[:, 0]}, "pictures can only be classified"),
        (
            {"x": TABLE, "y": CLASSES, "classes": ["a", "b"]},
            "numbers from 0 to 1, as 'classes' has 2 names, got 0 to 3",
        ),
        (
            {"train_x": TABLE, "train_y": CLASSES, "test_x": TABLE[:, :2], "test_y": CLASSES},
            "samples of the same shape",
        ),
        ({"train_x": TABLE, "train_y": CLASSES, "test_x": TABLE, "test_y": CLASSES.astype(str)}, "same shape and kind"),
    ],
)
def test_bad_arrays(arrays: dict[str, np.ndarray], message: str, file: Path) -> None:
    np.savez(file, **arrays)
    with pytest.raises(InputError, match=message):
        load(file)


def test_text_cannot_be_regressed(file: Path) -> None:
    np.savez(file, x=TABLE, y=CLASSES.astype(str))
    with pytest.raises(InputError, match=r"targets of a regression in .* must be numbers, got type <U"):
        load(file, task="regression")
    np.savez(file, x=PICTURES, y=CLASSES)
    with pytest.raises(InputError, match="pictures can only be classified"):
        load(file, task="regression")


def test_files_that_are_no_npz(file: Path) -> None:
    for content in (b"", b"PK\x03\x04 cut off", b"hello"):
        file.write_bytes(content)
        with pytest.raises(
            InputError, match=r"must be an NPZ file, as np.savez writes it, got one that cannot be read"
        ):
            load(file)
    with file.open("wb") as stream:
        np.save(stream, TABLE)
    with pytest.raises(InputError, match=r"must be written by np.savez.* got a single array"):
        load(file)
