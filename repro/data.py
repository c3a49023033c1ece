"""The images: read once into memory, hashed, normalised once.

Three forms: a folder of class folders, CIFAR-10 through torchvision, and synthetic images that the
project draws itself. None ever stands in for another silently.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from repro.files import write_atomically
from repro.spec import Statistics

CLASSES = 10
PIXELS = 3 * 32 * 32

# The report's constants. The first three are the channel means of the training set; the others it
# calls its standard deviations, but they are the mean of the per-image ones: over the whole
# training set the deviations are about (0.247, 0.243, 0.262).
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2023, 0.1994, 0.2010)

_CIFAR10_CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
_KINDS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG"}


class DataError(Exception):
    """The images cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Images:
    """Training and test images.

    Attributes:
        form: what they are, for titles and records.
        cifar10: whether they are the CIFAR-10 images, so that published results apply.
        train: uint8, ``(n, 3, 32, 32)``.
        train_labels: int64, ``(n,)``.
        test: uint8, ``(m, 3, 32, 32)``.
        test_labels: int64, ``(m,)``.
    """

    form: str
    cifar10: bool
    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test: NDArray[np.uint8]
    test_labels: NDArray[np.int64]

    @property
    def hash(self) -> str:
        """SHA-256 over shapes, pixels and labels."""
        digest = hashlib.sha256()
        for array in (self.train, self.train_labels, self.test, self.test_labels):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Tensors:
    """Normalised float32 images ``(n, 3072)``, channel first, and labels, on one device."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load(source: str) -> Images:
    """Images from a folder, ``"cifar10"`` or ``"synthetic"``.

    Raises:
        DataError: they cannot be had.
    """
    if source == "synthetic":
        return synthetic()
    if source == "cifar10":
        return _cifar10()
    try:
        return _folder(Path(source))
    except OSError as error:
        where = error.filename or source
        raise DataError(f"--data {source}: {where}: {error.strerror or error}") from error


def normalise(
    pixels: NDArray[np.uint8],
    device: torch.device,
    statistics: tuple[Sequence[float], Sequence[float]] | None = (_MEAN, _STD),
) -> Tensor:
    """``(x / 255 − mean) / std`` per channel, flattened: ``(n, 3072)`` float32.

    Args:
        pixels: uint8, ``(n, 3, 32, 32)``.
        device: of the result.
        statistics: mean and standard deviation per channel; None takes each image's own.
    """
    result = torch.empty(len(pixels), PIXELS)
    if statistics is not None:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    for start in range(0, len(pixels), 4096):
        batch = torch.from_numpy(pixels[start : start + 4096]).float().div_(255)
        if statistics is None:
            mean = batch.mean((2, 3), keepdim=True)
            # An image of one colour has no deviation; it stays zero.
            std = batch.std((2, 3), correction=0, keepdim=True).clamp_(min=1 / 255)
        result[start : start + 4096] = batch.sub_(mean).div_(std).flatten(1)
    return result.to(device)


def channel_statistics(pixels: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of ``x / 255`` per channel, over all images and positions."""
    # Exact: from how often each of the 256 values occurs.
    values = np.arange(256) / 255
    counts = [np.bincount(pixels[:, channel].ravel(), minlength=256) for channel in range(3)]
    means = [float(np.average(values, weights=count)) for count in counts]
    variances = [
        float(np.average((values - mean) ** 2, weights=count))
        for mean, count in zip(means, counts, strict=True)
    ]
    return means, [variance**0.5 for variance in variances]


def require(images: Images, train_images: int) -> None:
    """See that there are so many training images.

    Raises:
        DataError: there are fewer.
    """
    if train_images > len(images.train):
        raise DataError(
            f"{train_images} training images are asked for, but there are {len(images.train)}: "
            "use --preset quick or images of full size"
        )


def tensors(
    images: Images,
    train_images: int,
    device: torch.device,
    statistics: Statistics = "published",
) -> Tensors:
    """The first ``train_images`` of a fixed shuffle, and all test images, normalised alike.

    Raises:
        DataError: there are fewer.
    """
    require(images, train_images)
    # Folders come sorted by class, so a part of them has to be drawn, not cut.
    chosen = np.random.default_rng(0).permutation(len(images.train))[:train_images]
    by = {
        "published": lambda: (_MEAN, _STD),
        "image": lambda: None,
        "dataset": lambda: channel_statistics(images.train),
    }[statistics]()
    return Tensors(
        normalise(images.train[chosen], device, by),
        torch.from_numpy(images.train_labels[chosen]).to(device),
        normalise(images.test, device, by),
        torch.from_numpy(images.test_labels).to(device),
    )


def synthetic(train: int = 10_000, test: int = 2_000, seed: int = 0) -> Images:
    """Images drawn from smooth random fields, for a machine without CIFAR-10.

    A class owns four prototypes, each a low-frequency colour field. An image is one of them,
    shifted by up to four pixels, in random contrast and brightness, blended with a prototype of
    any class as a distractor, under noise; 8 % of the labels are wrong. No linear rule separates
    the classes, and none can be learned perfectly.
    """
    rng = np.random.default_rng(seed)
    prototypes = _fields(rng, CLASSES * 4, size=40, cutoff=5.0).reshape(CLASSES, 4, 3, 40, 40)

    def draw(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = rng.integers(CLASSES, size=count)
        pixels = np.empty((count, 3, 32, 32), np.uint8)
        for index, label in enumerate(labels):
            image = 0.62 * _crop(rng, prototypes[label]) * rng.uniform(0.6, 1.4)
            image += 0.45 * _crop(rng, prototypes[rng.integers(CLASSES)])
            image += 0.35 * rng.standard_normal((3, 32, 32)) + 0.3 * rng.standard_normal((3, 1, 1))
            pixels[index] = np.clip(127 + 60 * image, 0, 255).astype(np.uint8)
        wrong = rng.random(count) < 0.08
        labels[wrong] = rng.integers(CLASSES, size=int(wrong.sum()))
        return pixels, labels.astype(np.int64)

    train_pixels, train_labels = draw(train)
    test_pixels, test_labels = draw(test)
    form = f"synthetic images (seed {seed})"
    return Images(form, False, train_pixels, train_labels, test_pixels, test_labels)


def _fields(rng: np.random.Generator, count: int, size: int, cutoff: float) -> NDArray[np.float64]:
    """``count`` random colour fields of unit deviation with a Gaussian spectrum."""
    frequency = np.fft.fftfreq(size) * size
    spectrum = np.exp(-(frequency[:, None] ** 2 + frequency**2) / (2 * cutoff**2))
    noise = np.fft.fft2(rng.standard_normal((count, 3, size, size)))
    fields = np.fft.ifft2(noise * spectrum).real
    result: NDArray[np.float64] = fields / fields.std(axis=(2, 3), keepdims=True)
    return result


def _crop(rng: np.random.Generator, variants: NDArray[np.float64]) -> NDArray[np.float64]:
    field = variants[rng.integers(len(variants))]
    top, left = rng.integers(0, 9, size=2)
    crop: NDArray[np.float64] = field[:, top : top + 32, left : left + 32]
    return crop


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "enorm-repro"


def _cifar10() -> Images:
    from torchvision.datasets import CIFAR10

    root = _cache_folder() / "cifar10"
    parts = []
    for train in (True, False):
        try:
            part = CIFAR10(str(root), train=train, download=True)
        except Exception as error:  # whatever the network, the disk or an archive may do
            raise DataError(
                f"CIFAR-10 could not be downloaded ({type(error).__name__}: {error}): give a "
                "folder of images with --data PATH, or use drawn images with --data synthetic"
            ) from error
        pixels = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        parts.append((pixels, np.array(part.targets, np.int64)))
    return Images("CIFAR-10", True, *parts[0], *parts[1])


def _folder(path: Path) -> Images:
    """``path/train/CLASS/*`` and ``path/test/CLASS/*``; the decoded pixels are cached."""
    from torchvision.datasets import ImageFolder

    parts = []
    suffixes: set[str] = set()
    classes: list[list[str]] = []
    for name in ("train", "test"):
        if not (path / name).is_dir():
            raise DataError(
                f"--data {path} has no folder {name}/: give a folder with train/CLASS/ and "
                "test/CLASS/, or use --data cifar10 or --data synthetic"
            )
        try:
            folder = ImageFolder(str(path / name))
        except FileNotFoundError as error:
            raise DataError(f"--data {path}: {name}/ holds no class folders of images") from error
        if len(folder.classes) != CLASSES:
            raise DataError(
                f"--data {path}: {name}/ has {len(folder.classes)} class folders, not {CLASSES}"
            )
        classes.append(folder.classes)
        if classes[0] != classes[-1]:
            # Labels are places in the sorted names.
            raise DataError(f"--data {path}: train/ and test/ have class folders of other names")
        suffixes |= {Path(file).suffix.lower().lstrip(".") for file, _ in folder.samples}
        parts.append(_decode(folder.samples, name, path))
    kind = " and ".join(sorted({_KINDS.get(suffix, suffix.upper()) for suffix in suffixes}))
    cifar10 = folder.classes == _CIFAR10_CLASSES and all(
        np.array_equal(np.bincount(labels), np.full(CLASSES, count))
        for (_, labels), count in zip(parts, (5000, 1000), strict=True)
    )
    form = f"CIFAR-10 as {kind} files" if cifar10 else f"a folder of {kind} files"
    return Images(form, cifar10, *parts[0], *parts[1])


def _decode(
    samples: list[tuple[str, int]], name: str, root: Path
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels and labels of an image folder; a copy is kept, keyed by place, sizes and times."""
    digest = hashlib.sha256(f"{root.resolve()}\n".encode())
    for file, label in samples:
        stat = os.stat(file)
        relative = Path(file).relative_to(root)
        digest.update(f"{relative}|{label}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    cached = _cache_folder() / f"{digest.hexdigest()[:24]}.npz"
    # A copy that cannot be read is made again.
    unreadable = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
    with contextlib.suppress(*unreadable), cached.open("rb") as kept, np.load(kept) as arrays:
        return arrays["pixels"], arrays["labels"]
    from PIL import Image

    pixels = np.empty((len(samples), 3, 32, 32), np.uint8)
    labels = np.array([label for _, label in samples], np.int64)
    for index, (path, _) in enumerate(tqdm(samples, desc=f"decoding {name}/", unit="image")):
        try:
            with Image.open(path) as image:
                if image.size != (32, 32):
                    raise DataError(
                        f"{path} is {image.size[0]}×{image.size[1]} pixels instead of 32×32"
                    )
                pixels[index] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError) as error:
            raise DataError(f"{path} cannot be read as an image ({error})") from error
    try:
        content = io.BytesIO()
        np.savez(content, pixels=pixels, labels=labels)
        write_atomically(cached, content.getvalue())
    except OSError as error:
        raise DataError(
            f"decoded images cannot be kept in {cached.parent} ({error.strerror or error}): set "
            "XDG_CACHE_HOME to a folder with room"
        ) from error
    return pixels, labels
