"""Tests of ``netwright.data.slices``: subgroups of the test part from tables, arrays and bundled sets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from netwright.data import Splits, load


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    lines = ["age,plan,score,member,leaves"]
    for i in range(80):
        plan = "" if i % 20 == 7 else ("basic" if i % 3 else "plus")
        lines.append(f"{i},{plan},{i % 4},{'true' if i % 2 else 'false'},{'yes' if i % 5 < 2 else 'no'}")
    path.write_text("\n".join(lines))
    return path


def rows_of_test(splits: Splits) -> torch.Tensor:
    """Which row each sample of the test part is, where the first column counts the rows."""
    counted = torch.cat([getattr(splits, part).inputs[:, 0] for part in ("train", "val", "test")])
    return counted.argsort().argsort()[-len(splits.test) :]


def test_a_slice_of_a_table_follows_its_rows(table: Path) -> None:
    splits = load(table, target="leaves", impute=True, seed=3, slices=["plan", "score", "member"])
    plan, score, member = splits.slices
    assert (plan.name, plan.levels) == ("plan", ("(missing)", "basic", "plus"))
    assert score.levels == ("0", "1", "2", "3")
    assert member.levels == ("False", "True")
    rows = rows_of_test(splits)
    assert torch.equal(score.numbers, rows % 4)
    assert torch.equal(member.numbers, rows % 2)


def test_a_dropped_column_may_be_a_slice(table: Path) -> None:
    kept = load(table, target="leaves", impute=True, slices=["plan"])
    dropped = load(table, target="leaves", drop=["plan"], slices=["plan"])
    assert torch.equal(kept.slices[0].numbers, dropped.slices[0].numbers)
    assert any(column.startswith("plan=") for column in kept.columns)
    assert not any(column.startswith("plan") for column in dropped.columns)


def test_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,size,y\n" + "\n".join(f"{i},{(2, 10, 9.5)[i % 3]},{'ab'[i % 2]}" for i in range(30)))
    assert load(path, target="y", slices=["size"]).slices[0].levels == ("2", "9.5", "10")


def test_an_array_of_an_npz(tmp_path: Path) -> None:
    x, y = np.arange(60.0)[:, None], np.arange(60) % 2
    site = np.array(["north", "south", "<b>"])[np.arange(60) % 3]
    path = tmp_path / "whole.npz"
    np.savez(path, x=x, y=y, site=site)
    splits = load(path, slices="site")
    (found,) = splits.slices
    assert found.levels == ("<b>", "north", "south")
    assert [found.levels[i] for i in found.numbers] == site[rows_of_test(splits)].tolist()

    path = tmp_path / "divided.npz"
    np.savez(path, train_x=x, train_y=y, train_site=site, test_x=x[:6], test_y=y[:6], test_site=site[:6])
    (found,) = load(path, slices=["site"]).slices
    assert [found.levels[i] for i in found.numbers] == site[:6].tolist()


def test_a_column_of_a_bundled_table() -> None:
    splits = load("diabetes", slices=["sex"])
    (sex,) = splits.slices
    assert len(sex.levels) == 2
    column = splits.test.inputs[:, splits.columns.index("sex")]
    assert torch.equal(sex.numbers == 1, column > column.mean())


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        (["plam"], "has no column 'plam' for a slice; did you mean 'plan'?"),
        (["leaves"], "the target cannot be a slice; its classes are reported on anyway, got 'leaves'"),
        (["age"], "the slice 'age' of .* must have 2 to 50 different values; bring numbers into a few ranges first"),
    ],
)
def test_what_is_no_slice_of_a_table(table: Path, slices: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(table, target="leaves", impute=True, slices=slices)


def test_what_is_no_slice_of_other_data(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(
        path, x=np.ones((20, 2)), y=np.arange(20) % 2, short=np.arange(3), square=np.ones((20, 2)), one=np.ones(20)
    )
    for name, message in {
        "shart": "did you mean 'short'",
        "short": "must have one value for each of the 20 samples",
        "square": "must have one value for each sample",
        "one": "must have 2 to 50 different values, got 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(path, slices=[name])
    for data in ("digits", "iris"):
        with pytest.raises(ValueError, match="has no column 'pixel' for a slice"):
            load(data, slices=["pixel"])
    with pytest.raises(ValueError, match="slices are columns of a CSV file or of a bundled table, or arrays of an NPZ"):
        load("mnist", slices=["a"])
