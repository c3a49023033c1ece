"""From specs to records: what is missing is run, what exists is never repeated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from repro import records
from repro.data import Images, Tensors, tensors
from repro.records import Record
from repro.spec import RunSpec, Statistics
from repro.train import Epoch, train


def weight_count(spec: RunSpec) -> int:
    """Entries of all weights: what a step's time is about proportional to."""
    return 3072 * spec.width + spec.depth * spec.width**2 + spec.width * 10


def run_all(
    specs: Sequence[RunSpec], images: Images, folder: Path, device: torch.device
) -> list[Record]:
    """Records of all ``specs``, in their order; missing ones are run and written one by one.

    Progress and the time left are shown on the terminal, weighted by each run's size. Stopping at
    any point loses the run in progress and nothing else.

    Args:
        specs: the runs.
        images: the images of all runs.
        folder: where records are kept.
        device: where to train.

    Raises:
        ValueError: a file in ``folder`` is no whole run record.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data_hash = images.hash
    known = {record.key: record for record in records.read_all(folder)}
    keys = [spec.key(data_hash) for spec in specs]
    missing = [(spec, key) for spec, key in zip(specs, keys, strict=True) if key not in known]
    if not missing:
        return [known[key] for key in keys]
    prepared: dict[tuple[int, Statistics], Tensors] = {}
    total = sum(weight_count(spec) * spec.epochs * spec.train_images for spec, _ in missing)
    with tqdm(
        total=total,
        bar_format="{percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left {postfix}",
        dynamic_ncols=True,
    ) as progress:
        for number, (spec, key) in enumerate(missing, start=1):
            form = (spec.train_images, spec.statistics)
            if form not in prepared:
                # One form at a time: all images of one take half a gigabyte and more.
                prepared = {form: tensors(images, spec.train_images, device, spec.statistics)}
            name = (
                f"run {number}/{len(missing)}: {spec.method}, depth {spec.depth}, seed {spec.seed}"
            )
            cost = weight_count(spec) * spec.train_images
            done = 0

            def on_epoch(epoch: int, point: Epoch, name: str = name, cost: int = cost) -> None:
                nonlocal done
                done += cost
                progress.set_postfix_str(
                    f"{name}, epoch {epoch + 1}: {point.test_accuracy:.2f} %", refresh=False
                )
                progress.update(cost)

            progress.set_postfix_str(name)
            result = train(spec, prepared[form], on_epoch)
            # A diverged run ends early; what it leaves undone is done.
            progress.update(cost * spec.epochs - done)
            known[key] = records.make(spec, result, images, key, device)
            records.write(folder, known[key])
    return [known[key] for key in keys]
