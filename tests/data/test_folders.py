"""Tests of ``netwright.data.folders``."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from netwright.checks import InputError
from netwright.data import Task, load
from netwright.data.folders import ORIENTATION, read_folder


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 4), value: int | None = None) -> None:
    """A picture of ``size`` (width, height) with random pixels, or all of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32("/".join(path.parts[-2:]).encode()))
    pixels = rng.integers(0, 256, (size[1], size[0], 3)) if value is None else np.full((size[1], size[0], 3), value)
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("cats", "dogs"):
        for i in range(10):
            save(root / name / f"{i}.png")
    return root


def test_a_folder_for_each_class(photos: Path) -> None:
    splits = load(photos, seed=1)
    assert splits.task is Task.IMAGE_CLASSIFICATION
    assert splits.classes == ("cats", "dogs")
    assert splits.input_shape == (3, 4, 6)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (12, 4, 4)
    assert splits.test.targets.bincount().tolist() == [2, 2]


def test_pixels_are_those_of_the_file(photos: Path) -> None:
    raw = read_folder(photos)
    with Image.open(photos / "dogs" / "3.png") as image:
        np.testing.assert_array_equal(raw.inputs[13], np.moveaxis(np.asarray(image), 2, 0))


def test_gray_if_all_are(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "a" / f"{i}.png", "L")
        save(tmp_path / "b" / f"{i}.png", "1" if i else "LA")
    assert read_folder(tmp_path).inputs.shape == (6, 1, 4, 6)
    save(tmp_path / "b" / "colour.png", "RGBA")
    save(tmp_path / "b" / "palette.gif", "P")
    assert read_folder(tmp_path).inputs.shape == (8, 3, 4, 6)


def test_16_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    for name, value in (("a", 0x8000), ("b", 0x4000)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 6), value, dtype=np.uint16)).save(tmp_path / name / "x.png")
    assert read_folder(tmp_path).inputs[:, 0, 0, 0].tolist() == [0x80, 0x40]


def test_pictures_are_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    save(tmp_path / "a" / "lying.png", size=(4, 6))
    (tmp_path / "b").mkdir()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "b" / "standing.jpg", exif=exif)
    assert read_folder(tmp_path).inputs.shape == (2, 3, 6, 4)


def test_hidden_files_and_notes_are_passed_over(photos: Path) -> None:
    (photos / ".git").mkdir()
    (photos / "__MACOSX").mkdir()
    (photos / "cats" / ".hidden.png").write_bytes(b"nothing")
    (photos / "cats" / ".thumbs").mkdir()
    (photos / "cats" / ".thumbs" / "1.png").write_bytes(b"nothing")
    (photos / "cats" / "Thumbs.db").write_bytes(b"nothing")
    (photos / "readme.txt").write_text("photos")
    assert len(read_folder(photos).targets) == 20


def test_pictures_in_deeper_folders(photos: Path) -> None:
    save(photos / "cats" / "2024" / "may" / "x.PNG")
    assert np.bincount(read_folder(photos).targets).tolist() == [11, 10]


@pytest.mark.parametrize("val", ["val", "valid", "validation", None])
def test_official_parts(val: str | None, tmp_path: Path) -> None:
    for part, count in (("train", 10), ("test", 3), *([(val, 2)] if val else [])):
        for name in ("cats", "dogs"):
            for i in range(count):
                save(tmp_path / part / name / f"{i}.png")
    splits = load(tmp_path)
    assert splits.classes == ("cats", "dogs")
    assert (len(splits.train), len(splits.val), len(splits.test)) == ((20, 4, 6) if val else (18, 2, 6))


def test_train_and_val_without_test(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 3)):
        for name in ("cats", "dogs"):
            for i in range(count):
                save(tmp_path / part / name / f"{i}.png")
    splits = load(tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (16, 6, 4)


def test_mixed_sizes(photos: Path) -> None:
    save(photos / "dogs" / "wide.png", size=(12, 4))
    with pytest.raises(InputError, match=r"one size .*give image_size=64.*got 4×6 \(20\), 4×12 \(1\)"):
        load(photos)
    assert load(photos, image_size=8).input_shape == (3, 8, 8)
    assert load(photos, image_size=(5, 7)).input_shape == (3, 5, 7)
    for i in range(3):
        save(photos / "cats" / f"other{i}.png", size=(13 + i, 4))
    with pytest.raises(InputError, match="and 2 more sizes"):
        load(photos)


def test_resizing_keeps_the_mean(tmp_path: Path) -> None:
    for name, value in (("a", 10), ("b", 200)):
        save(tmp_path / name / "x.png", size=(40, 30), value=value)
    assert read_folder(tmp_path, 7).inputs.reshape(2, -1).mean(1).tolist() == [10, 200]


@pytest.mark.parametrize("image_size", [0, -3, (4,), (4, 0)])
def test_bad_image_size(image_size: object, photos: Path) -> None:
    with pytest.raises(InputError, match="image_size must be a positive number, or height and width, got"):
        load(photos, image_size=image_size)


@pytest.mark.parametrize("kind", ["empty", "text", "cut off"])
def test_a_broken_picture_is_named(kind: str, photos: Path) -> None:
    path = photos / "cats" / "4.png"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"this is no picture", "cut off": content[: len(content) // 2]}[kind])
    with pytest.raises(InputError, match=r"cats/4\.png cannot be read as a picture \(.+\); replace or remove it"):
        load(photos)


def test_a_picture_of_another_format_than_its_name_says(photos: Path) -> None:
    with Image.open(photos / "cats" / "0.png") as image:
        image.save(photos / "cats" / "0.png", format="BMP")
    assert len(read_folder(photos).targets) == 20


def test_folders_without_classes(tmp_path: Path, photos: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="sub-folder of pictures for each of at least two classes, got none"):
        load(empty)
    with pytest.raises(InputError, match="at least two classes, got only 'photos'"):
        load(tmp_path / "photos" / "..") if empty.rmdir() is None else None
    (photos / "birds").mkdir()
    with pytest.raises(InputError, match=r"birds must have pictures \(.*\.png.*\), got none"):
        load(photos)


def test_a_class_without_training_pictures(tmp_path: Path) -> None:
    for folder in ("train/cats", "train/dogs", "test/cats", "test/dogs", "test/eels"):
        save(tmp_path / folder / "x.png")
    with pytest.raises(InputError, match="every class in test/ must be in train/, too, got 'eels' without training"):
        load(tmp_path)


def test_a_class_with_too_few_pictures(photos: Path) -> None:
    save(photos / "eels" / "x.png")
    with pytest.raises(InputError, match=r"at least 3 samples .* 'eels' \(1\)"):
        load(photos)


def test_pictures_that_do_not_fit_into_memory(photos: Path) -> None:
    with pytest.raises(InputError, match=r"20 pictures of 9999999×9999999 need .* GB; give a smaller image_size"):
        load(photos, image_size=9_999_999)


def test_the_seed_decides(photos: Path) -> None:
    first, again, other = (load(photos, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
