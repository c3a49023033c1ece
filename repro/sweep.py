"""From specs to records: what is missing is run, what exists is never repeated."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, Never

import torch
from tqdm import tqdm

from repro import records
from repro.cluster import run_on_cluster
from repro.data import Images, Tensors, tensors
from repro.records import Record
from repro.spec import RunSpec, Statistics
from repro.train import Epoch, train

Executor = Literal["local", "ray"]


def run_all(
    specs: Sequence[RunSpec],
    images: Images,
    folder: Path,
    device: torch.device,
    executor: Executor = "local",
) -> list[Record]:
    """Records of all ``specs``, in their order; missing ones are run and written one by one.

    Progress and the time left are shown on the terminal, weighted by each run's size. Stopping at
    any point loses the runs in progress and nothing else.

    Args:
        specs: the runs.
        images: the images of all runs.
        folder: where records are kept.
        device: where to train.
        executor: ``local`` runs them one after the other, ``ray`` on a Ray cluster.

    Raises:
        ValueError: a file in ``folder`` is no whole run record, or Ray is not installed.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data_hash = images.hash
    known = {record.key: record for record in records.read_all(folder)}
    keys = [spec.key(data_hash) for spec in specs]
    missing = {key: spec for key, spec in zip(keys, specs, strict=True) if key not in known}
    if not missing:
        return [known[key] for key in keys]
    with tqdm(
        total=sum(spec.cost for spec in missing.values()),
        bar_format="{percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left {postfix}",
        dynamic_ncols=True,
    ) as progress:
        if executor == "ray":
            made = run_on_cluster(list(missing.values()), images, device, progress)
        else:
            made = _run_here(list(missing.values()), images, device, progress)
        with closing(made):
            for record in made:
                records.write(folder, record)
                known[record.key] = record
    return [known[key] for key in keys]


def _run_here(
    specs: Sequence[RunSpec], images: Images, device: torch.device, progress: tqdm[Never]
) -> Generator[Record]:
    """One after the other, in this process."""
    prepared: dict[tuple[int, Statistics], Tensors] = {}
    for number, spec in enumerate(specs, start=1):
        form = (spec.train_images, spec.statistics)
        if form not in prepared:
            # One form at a time: all images of one take half a gigabyte and more.
            prepared = {form: tensors(images, spec.train_images, device, spec.statistics)}
        name = f"run {number}/{len(specs)}: {spec.method}, depth {spec.depth}, seed {spec.seed}"
        cost = spec.cost // spec.epochs
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
        progress.update(spec.cost - done)
        yield records.make(spec, result, images, spec.key(images.hash), device)
