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
from repro.data import Images, Tensors, require, tensors
from repro.records import Record
from repro.spec import RunSpec, Statistics
from repro.train import Epoch, shape, train_together

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
        DataError: there are too few images.
        ValueError: a file in ``folder`` is no whole run record or one of other images, or Ray is
            not installed.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data_hash = images.hash
    known = {record.key: record for record in records.read_all(folder)}
    forms = {one.data["form"] for one in known.values() if one.data["hash"] != data_hash}
    if forms:
        raise ValueError(
            f"{folder} holds runs on other images ({', '.join(sorted(forms))}), which cannot be "
            "compared: use another --out"
        )
    require(images, max(spec.train_images for spec in specs))
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
    first = 1
    for group in _groups(specs, device):
        form = (group[0].train_images, group[0].statistics)
        if form not in prepared:
            # One form at a time: all images of one take half a gigabyte and more.
            prepared = {form: tensors(images, form[0], device, form[1])}
        done = 0

        def on_epoch(
            index: int,
            epoch: int,
            point: Epoch,
            group: list[RunSpec] = group,
            first: int = first,
        ) -> None:
            nonlocal done
            spec = group[index]
            done += spec.cost // spec.epochs
            name = f"run {first + index}/{len(specs)}: {_name(spec)}"
            text = f"{name}, epoch {epoch + 1}: {point.test_accuracy:.2f} %"
            progress.set_postfix_str(text, refresh=False)
            progress.update(spec.cost // spec.epochs)

        progress.set_postfix_str(f"run {first}/{len(specs)}: {_name(group[0])}")
        results = train_together(group, prepared[form], on_epoch)
        # A diverged run ends early; what it leaves undone is done.
        progress.update(sum(spec.cost for spec in group) - done)
        first += len(group)
        for spec, result in zip(group, results, strict=True):
            key = spec.key(images.hash)
            yield records.make(spec, result, images, key, device, together=len(group))


def _groups(specs: Sequence[RunSpec], device: torch.device) -> list[list[RunSpec]]:
    """Which runs train together: on a GPU all of one shape, for one alone leaves it idle."""
    if device.type == "cpu":
        return [[spec] for spec in specs]
    alike: dict[RunSpec, list[RunSpec]] = {}
    for spec in specs:
        alike.setdefault(shape(spec), []).append(spec)
    return list(alike.values())


def _name(spec: RunSpec) -> str:
    return f"{spec.method}, depth {spec.depth}, seed {spec.seed}"
