"""Tests of ``netwright.data.tables``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netwright.checks import InputError
from netwright.data import Splits, Task, load
from netwright.data.tables import encode, read_table

ROWS = 60


def write(path: Path, columns: dict[str, list[object]], separator: str = ",") -> Path:
    rows = [separator.join(columns), *(separator.join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def columns() -> dict[str, list[object]]:
    rng = np.random.default_rng(0)
    return {
        "age": rng.integers(18, 80, ROWS).tolist(),
        "income": rng.normal(3e4, 1e4, ROWS).round(2).tolist(),
        "town": [("Aachen", "Bonn", "Köln")[i % 3] for i in range(ROWS)],
        "member": [i % 4 == 0 for i in range(ROWS)],
        "churn": ["yes" if i % 2 else "no" for i in range(ROWS)],
    }


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "sales.csv"


def test_numbers_categories_and_booleans(table: Path, columns: dict[str, list[object]]) -> None:
    splits = load(write(table, columns), target="churn", seed=1)
    assert splits.task is Task.TABULAR_CLASSIFICATION
    assert splits.classes == ("no", "yes")
    assert splits.columns == ("age", "income", "town=Aachen", "town=Bonn", "town=Köln", "member")
    assert splits.input_shape == (6,)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (36, 12, 12)
    numbers = splits.train.inputs[:, [0, 1, 5]]
    torch.testing.assert_close(numbers.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(numbers.var(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)
    assert set(splits.train.inputs[:, 2:5].unique().tolist()) == {0.0, 1.0}
    assert splits.train.inputs[:, 2:5].sum(1).unique().tolist() == [1.0]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators(separator: str, table: Path, columns: dict[str, list[object]], tmp_path: Path) -> None:
    plain = load(write(table, columns), target="churn")
    other = load(write(tmp_path / "other.tsv", columns, separator), target="churn")
    torch.testing.assert_close(plain.train.inputs, other.train.inputs)


def test_a_mark_at_the_start_of_the_file(table: Path, columns: dict[str, list[object]]) -> None:
    write(table, columns)
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert load(table, target="churn").columns[0] == "age"


@pytest.mark.parametrize(
    ("values", "task", "expected"),
    [
        ([i % 3 for i in range(ROWS)], None, "classification"),
        ([float(i % 3) for i in range(ROWS)], None, "classification"),
        ([i % 21 for i in range(ROWS)], None, "regression"),
        ([i % 3 + 0.5 for i in range(ROWS)], None, "regression"),
        ([i % 3 + 0.5 for i in range(ROWS)], "classification", "classification"),
        ([i % 3 for i in range(ROWS)], "regression", "regression"),
        ([i % 2 == 0 for i in range(ROWS)], None, "classification"),
        (["ab"[i % 2] for i in range(ROWS)], None, "classification"),
    ],
)
def test_what_the_target_is(
    values: list[object], task: str | None, expected: str, table: Path, columns: dict[str, list[object]]
) -> None:
    splits = load(write(table, columns | {"y": values}), target="y", task=task)
    assert splits.task == f"tabular-{expected}"
    assert splits.outputs == (len(set(values)) if expected == "classification" else 1)


def test_whole_numbers_name_classes_without_a_point(table: Path, columns: dict[str, list[object]]) -> None:
    splits = load(write(table, columns | {"y": [float(i % 2) for i in range(ROWS)]}), target="y")
    assert splits.classes == ("0", "1")


def test_a_regression_is_in_the_unit_of_the_target(table: Path, columns: dict[str, list[object]]) -> None:
    splits = load(write(table, columns), target="income")
    assert splits.train.targets.shape == (36, 1)
    assert splits.train.target_std == pytest.approx(1e4, rel=0.4)


@given(seed=st.integers(0, 30))
def test_nothing_is_learned_from_other_rows(seed: int) -> None:
    """Levels, medians and modes come from the training rows: change the others, and the former stay as they are."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"x": rng.normal(size=30), "c": rng.choice(["a", "b", None], 30)})
    frame.loc[rng.choice(30, 5, replace=False), "x"] = np.nan
    train = np.arange(0, 30, 2)
    other = frame.copy()
    other.loc[1::2, "x"], other.loc[1::2, "c"] = 1e9, "unseen"
    ours, names, categories = encode(frame, train)
    theirs, other_names, _ = encode(other, train)
    assert names == other_names
    np.testing.assert_array_equal(ours[train], theirs[train])
    assert not theirs[1::2][:, list(categories["c"])].any()  # an unseen level is all zeros
    assert np.isfinite(ours).all()


def test_unseen_levels_are_zeros_in_the_splits(table: Path, columns: dict[str, list[object]]) -> None:
    splits = load(write(table, columns), target="churn", seed=2, train=2)
    seen = [i for i, name in enumerate(splits.columns) if name.startswith("town=")]
    rows = torch.cat([splits.val.inputs, splits.test.inputs])[:, seen]
    assert len(seen) < 3
    assert set(rows.sum(1).tolist()) == {0.0, 1.0}


def test_missing_values_are_an_error_unless_imputed(table: Path, columns: dict[str, list[object]]) -> None:
    columns["age"][:3] = [""] * 3
    columns["town"][5] = ""
    columns["member"][7] = ""
    write(table, columns)
    message = r"missing values in 'age' \(3\), 'town' \(1\), 'member' \(1\) of 60 rows; .* or give impute=True"
    with pytest.raises(InputError, match=message):
        load(table, target="churn")
    splits = load(table, target="churn", impute=True)
    assert splits.columns == ("age", "income", "town=Aachen", "town=Bonn", "town=Köln", "member")
    assert all(part.inputs.isfinite().all() for part in (splits.train, splits.val, splits.test))


def test_median_and_most_frequent_value_fill_the_gaps() -> None:
    import pandas as pd

    frame = pd.DataFrame({"x": [1.0, 2.0, 9.0, np.nan, 50.0], "c": ["b", "a", "b", None, "a"]})
    numbers, names, _ = encode(frame, np.array([0, 1, 2, 3]))
    assert names == ("x", "c=a", "c=b")
    assert numbers[3].tolist() == [2.0, 0.0, 1.0]


def test_a_category_that_training_does_not_know() -> None:
    import pandas as pd

    frame = pd.DataFrame({"x": [np.nan, np.nan, 3.0], "c": [None, None, "a"]})
    numbers, names, _ = encode(frame, np.array([0, 1]))
    assert numbers[:2, 0].tolist() == [0, 0]
    assert names == ("x", "c=")


def test_an_index_written_by_pandas_is_left_out(table: Path, columns: dict[str, list[object]]) -> None:
    import pandas as pd

    pd.DataFrame(columns).to_csv(table)
    assert load(table, target="churn").columns[0] == "age"


def test_columns_can_be_dropped(table: Path, columns: dict[str, list[object]]) -> None:
    write(table, {"id": [f"customer {i}" for i in range(ROWS)]} | columns)
    for drop in (["id", "town"], "id"):
        assert "id" not in load(table, target="churn", drop=drop).columns
    with pytest.raises(InputError, match="has no column to drop 'towns'; did you mean 'town'"):
        load(table, target="churn", drop=["towns"])
    with pytest.raises(InputError, match="the target cannot be dropped"):
        load(table, target="churn", drop=["churn"])


def test_identifiers_and_texts_are_no_categories(table: Path, columns: dict[str, list[object]]) -> None:
    columns["id"] = [f"customer {i}" for i in range(ROWS)]
    columns["note"] = [f"text {i // 2 if i < 40 else i}" for i in range(ROWS)]
    message = (
        r"identifiers, dates or free text: 'id' .60 different texts in 60 rows, such as 'customer 0'., "
        r"'note' \(40 different texts .*; leave them out with drop=\['id', 'note'\]"
    )
    with pytest.raises(InputError, match=message):
        load(write(table, columns), target="churn")


def test_decimal_commas_and_spaces(table: Path) -> None:
    table.write_text("a; b; y\n" + "".join(f"{i},5; -{i},25; {i % 2}\n" for i in range(20)))
    numbers, names, _ = encode(read_table(table, "y").inputs, np.arange(20))
    assert names == ("a", "b")
    assert numbers[3].tolist() == [3.5, -3.25]


def test_something_strange_among_numbers(table: Path, columns: dict[str, list[object]]) -> None:
    columns["income"][4] = "?"
    columns["income"][9] = "unknown"
    with pytest.raises(InputError, match=r"'income' .* must hold only numbers .*, got '\?' in row 5 and 1 more"):
        load(write(table, columns), target="churn")


def broken_tables() -> dict[str, tuple[bytes, str | None, str]]:
    rows = "".join(f"{i},{i % 7},{'ab'[i % 2]}\n" for i in range(20))
    good = "x,z,y\n" + rows
    return {
        "no target given": (good.encode(), None, r"needs a target, .* target=… .*one of x, z, y"),
        "no such target": (good.encode(), "Y", r"has no target 'Y'; known are: x, y, z"),
        "a close target": (
            good.replace("y", "churned", 1).encode(),
            "churn",
            r"no target 'churn'; did you mean 'churned'",
        ),
        "one class": (good.replace("b\n", "a\n").encode(), "y", r"at least two classes to tell apart, got only 'a'"),
        "a rare class": ((good + "1,1,c\n2,2,c\n").encode(), "y", r"at least 3 samples.* too few have 'c' \(2\)"),
        "empty": (b"", "y", r"must have a header and rows, got an empty file"),
        "blank": (b"\n \n", "y", r"got an empty file"),
        "header only": (b"x,y\n", "y", r"must have rows below the header, got none"),
        "latin1": (
            good.replace("a", "ä").encode("latin1"),
            "y",
            r"UTF-8; convert .*iconv -f latin1.*byte 0xe4 at position 10 in",
        ),
        "utf-16": (good.encode("utf-16"), "y", r"UTF-8; convert it with: iconv -f utf-16 .*, got UTF-16"),
        "binary": (good.encode() + b"\0\0", "y", r"must be text, got a zero byte at position"),
        "only the target": (b"y\n" + b"a\nb\n" * 5, "y", r"at least one column besides the target 'y', got none"),
        "infinite": (good.replace("\n3,", "\ninf,", 1).encode(), "y", r"infinite values in 'x' \(1\); correct them"),
        "an infinite target": (good.replace("\n3,", "\n-inf,", 1).encode(), "x", r"infinite values in 'x' \(1\)"),
        "a gap in the target": (
            good.replace("3,3,b", "3,3,").encode(),
            "y",
            r"missing values in 'y' \(1\) .* target must be known",
        ),
        "long rows": (good.replace("5,5,b", "5,5,b,9").encode(), "y", r"cannot be read as a table: .*line 7, saw 4"),
        "all rows too long": (
            good.replace("a\n", "a,1\n").replace("b\n", "b,1\n").encode(),
            "y",
            r"cannot be read as a table",
        ),
        "twice the same name": (good.replace("z", "x", 1).encode(), "y", r"different names, got 'x' more than once"),
    }


@pytest.mark.parametrize("case", broken_tables())
def test_bad_files(case: str, table: Path) -> None:
    content, target, message = broken_tables()[case]
    table.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(table, target=target)


def test_an_empty_column(table: Path, columns: dict[str, list[object]]) -> None:
    with pytest.raises(InputError, match=r"column 'note' of .* is empty; leave it out with drop=\['note'\]"):
        load(write(table, columns | {"note": [""] * ROWS}), target="churn", impute=True)


def test_text_cannot_be_regressed(table: Path, columns: dict[str, list[object]]) -> None:
    with pytest.raises(InputError, match="target 'churn' of a regression must be numeric, got 'no' for instance"):
        load(write(table, columns), target="churn", task="regression")


def test_many_missing_columns_are_cut_short(table: Path) -> None:
    wide = {f"c{i}": ["", *range(1, ROWS)] for i in range(14)} | {"y": [i % 2 for i in range(ROWS)]}
    with pytest.raises(InputError, match=r"'c9' \(1\) and 4 more of 60 rows"):
        load(write(table, wide), target="y")


def test_names_of_columns_that_are_numbers(table: Path) -> None:
    path = write(table, {"2019": list(range(ROWS)), "2020": [i % 2 for i in range(ROWS)]})
    splits: Splits = load(path, target="2020")
    assert splits.columns == ("2019",)
    assert read_table(path, "2020").classes == ("0", "1")
