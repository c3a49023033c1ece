"""Runs on a Ray cluster: one task per run, tried again where a worker dies.

The cluster is the one that ``RAY_ADDRESS`` names, with this project installed on its machines,
else one that Ray starts on this machine. Only the process that asked for the runs writes records,
so a worker that dies leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Never

import torch
from tqdm import tqdm

from repro import records
from repro.data import Images, tensors
from repro.records import Record
from repro.spec import RunSpec
from repro.train import train

# A run is tried again so often; a spec that kills every worker must end some time.
_RETRIES = 3


def run_one(spec: RunSpec, images: Images, key: str, device_type: str, threads: int) -> Record:
    """What a worker does: one whole run, with its own environment in the record."""
    torch.set_num_threads(threads)
    device = torch.device(device_type)
    data = tensors(images, spec.train_images, device, spec.statistics)
    return records.make(spec, train(spec, data), images, key, device)


def run_on_cluster(
    specs: Sequence[RunSpec], images: Images, device: torch.device, progress: tqdm[Never]
) -> Generator[Record]:
    """Records in the order in which runs end.

    Args:
        specs: the runs.
        images: sent to the cluster once.
        device: a task asks for one GPU if this is one, else for as many CPUs as torch has threads.
        progress: moved on by each run's size.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "--executor ray needs Ray: pip install -e '.[ray]', or use --executor local"
        ) from error
    threads = torch.get_num_threads()
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        task = ray.remote(
            num_cpus=1 if device.type == "cuda" else threads,
            num_gpus=1 if device.type == "cuda" else 0,
            max_retries=_RETRIES,
        )(run_one)
        shared = ray.put(images)
        data_hash = images.hash
        # The largest first, so that none is left over at the end alone.
        waiting = {
            task.remote(spec, shared, spec.key(data_hash), device.type, threads): spec
            for spec in sorted(specs, key=lambda spec: -spec.cost)
        }
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            for reference in ready:
                spec = waiting.pop(reference)
                record: Record = ray.get(reference)
                text = f"{len(waiting)} runs left; {spec.method}, depth {spec.depth}"
                progress.set_postfix_str(text, refresh=False)
                progress.update(spec.cost)
                yield record
    finally:
        if started:
            ray.shutdown()
