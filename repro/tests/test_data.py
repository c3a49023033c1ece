"""Images are what the files hold, and images that cannot be had are an error that helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repro import data
from repro.data import DataError, Images

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten classes, two PNG files each for training and one for testing; its own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for part, count in (("train", 2), ("test", 1)):
        for name in NAMES:
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def test_a_folder_is_read_pixel_by_pixel_and_again_from_the_cache(folder: Path) -> None:
    first = data.load(str(folder))
    assert first.form == "a folder of PNG files"
    assert not first.cifar10, "20 images are not CIFAR-10, whatever the classes are called"
    assert first.train.shape == (20, 3, 32, 32)
    assert first.train_labels.tolist() == [label for label in range(10) for _ in range(2)]
    pixels = np.asarray(Image.open(folder / "train" / "cat" / "1.png"))
    assert np.array_equal(first.train[7], pixels.transpose(2, 0, 1))
    again = data.load(str(folder))
    assert again.hash == first.hash
    # A changed file must not be answered from the cache.
    Image.fromarray(255 - pixels).save(folder / "train" / "cat" / "1.png")
    assert data.load(str(folder)).hash != first.hash


def test_folders_that_do_not_hold_the_images(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no folder train/.*--data synthetic"):
        data.load(str(folder / "nowhere"))
    Image.new("RGB", (16, 32)).save(folder / "test" / "dog" / "0.png")
    with pytest.raises(DataError, match=r"16×32 pixels instead of 32×32"):
        data.load(str(folder))
    (folder / "test" / "dog" / "0.png").unlink()
    (folder / "test" / "dog").rmdir()
    with pytest.raises(DataError, match="test/ has 9 class folders, not 10"):
        data.load(str(folder))
    (folder / "test" / "dogs").mkdir()
    (folder / "test" / "dogs" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="have class folders of other names"):
        data.load(str(folder))
    (folder / "test" / "dogs").rename(folder / "test" / "dog")
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image"):
        data.load(str(folder))
    whole = (folder / "test" / "cat" / "0.png").read_bytes()
    (folder / "test" / "dog" / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image"):
        data.load(str(folder))
    (folder / "test" / "dog" / "0.png").unlink()
    (folder / "test" / "dog" / "0.png").symlink_to(folder / "gone.png")
    with pytest.raises(DataError, match=r"0\.png: No such file or directory"):
        data.load(str(folder))


def test_no_room_for_decoded_images_is_told_with_the_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cache").write_text("a file where a folder has to be")
    with pytest.raises(DataError, match=r"decoded images cannot be kept.*set XDG_CACHE_HOME"):
        data.load(str(folder))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more"])
def test_a_kept_copy_that_cannot_be_read_is_made_again(folder: Path, content: bytes) -> None:
    first = data.load(str(folder))
    copies = list((folder / "cache").rglob("*.npz"))
    assert copies
    for copy in copies:
        copy.write_bytes(content)
    assert data.load(str(folder)).hash == first.hash


def test_normalisation_is_the_reports(images: Images) -> None:
    """Per channel, channel first, and exactly ``(x / 255 − mean) / std`` in float32."""
    found = data.normalise(images.train[:3], torch.device("cpu")).view(3, 3, 32, 32)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    for channel in range(3):
        pixels = images.train[:3, channel].astype(np.float64) / 255
        expected = torch.from_numpy((pixels - mean[channel]) / std[channel])
        # Three roundings of values up to 2.8: a division, a subtraction, a division.
        torch.testing.assert_close(
            found[:, channel].double(), expected, rtol=0, atol=3 * 2.0**-23 * 2.8
        )


def test_a_part_of_the_images_is_drawn_from_all_classes(images: Images) -> None:
    order = np.argsort(images.train_labels, kind="stable")
    by_class = Images(
        "", False, images.train[order], images.train_labels[order], images.test, images.test_labels
    )
    some = data.tensors(by_class, 200, torch.device("cpu"))
    assert some.train.shape == (200, 3072)
    assert set(some.train_labels.tolist()) == set(range(10))
    with pytest.raises(DataError, match="601 training images are asked for, but there are 600"):
        data.tensors(images, 601, torch.device("cpu"))


def test_synthetic_images_are_always_the_same(images: Images) -> None:
    assert data.synthetic(train=600, test=200).hash == images.hash
    assert data.synthetic(train=600, test=200, seed=1).hash != images.hash


def test_cifar10_that_cannot_be_had_names_the_other_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is a file here, so nothing can be downloaded into it, with or without network."""
    blocked = tmp_path / "cache"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(DataError, match=r"--data PATH.*--data synthetic"):
        data.load("cifar10")
