"""Tests of ``netwright.data.fingerprint``."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from netwright.checks import InputError
from netwright.data import fingerprint, known_sets
from netwright.data.public import CUT_DOWN


def test_named_sets_differ_and_need_no_files() -> None:
    names = set(known_sets()) - set(CUT_DOWN)
    prints = {fingerprint(name) for name in names}
    assert len(prints) == len(names)
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in prints)


def test_a_file_is_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("x,y\n1,2\n")
    second.write_text("x,y\n1,2\n")
    before = fingerprint(first)
    assert before == fingerprint(second) == fingerprint(str(first))
    os.utime(first, ns=(1, 1))
    assert fingerprint(first) == before
    first.write_text("x,y\n1,3\n")
    assert fingerprint(first) != before


def test_a_folder_is_its_pictures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(name.encode())
    before = fingerprint(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "a" / ".1.png").write_text("hidden")
    assert fingerprint(tmp_path) == before
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
    renamed = fingerprint(tmp_path)
    assert renamed != before
    (tmp_path / "a" / "2.png").write_bytes(b"other")
    assert fingerprint(tmp_path) not in (before, renamed)


def test_a_cut_down_set_is_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWRIGHT_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist-10k.npz", x=np.zeros(3))
    np.savez(tmp_path / "copy.npz", x=np.zeros(3))
    assert fingerprint("mnist-10k") == fingerprint(tmp_path / "mnist-10k.npz")


def test_unknown_data() -> None:
    with pytest.raises(InputError, match="did you mean 'digits'"):
        fingerprint("digit")
