"""Runs on a real Ray cluster on this machine, one of whose workers is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from repro import cluster, figure2, records
from repro.data import Images
from repro.spec import RunSpec
from repro.sweep import run_all

CPU = torch.device("cpu")


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of two single-threaded workers."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


def running() -> list[int]:
    """Processes of workers that are at a run; Ray names them by it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::"):
                found.append(int(process.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.usefixtures("two_workers")
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_killed_worker_loses_nothing_and_nothing_runs_twice(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RunSpec("enorm", 9, 0, 0.05, epochs=8, train_images=600, width=200)
    specs = [replace(first, seed=seed) for seed in range(4)]
    starts, whole = tmp_path / "starts", cluster.run_one

    def noted(spec: RunSpec, *rest: Any) -> records.Record:
        with starts.open("a") as file:
            file.write(f"{spec.seed} {os.getpid()}\n")
        return whole(spec, *rest)

    monkeypatch.setattr(cluster, "run_one", noted)
    killed: list[int] = []

    def kill_one() -> None:
        while not starts.exists() or len(starts.read_text().splitlines()) < 2:
            time.sleep(0.1)
        time.sleep(0.5)
        killed.append(int(starts.read_text().split()[1]))
        assert killed[0] in running()
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    done = run_all(specs, images, tmp_path / "ray", CPU, "ray")
    killer.join()
    assert [record.spec for record in done] == specs
    begun = [line.split() for line in starts.read_text().splitlines()]
    victim = next(seed for seed, pid in begun if int(pid) == killed[0])
    expected = Counter({str(spec.seed): 1 for spec in specs}) + Counter([victim])
    assert Counter(seed for seed, _ in begun) == expected, "only the killed run began again"
    assert len(list(records.read_all(tmp_path / "ray"))) == 4
    here = run_all(specs, images, tmp_path / "here", CPU)
    for one, other in zip(done, here, strict=True):
        assert one.key == other.key
        curves = [[replace(e, seconds=0) for e in r.result.curve] for r in (one, other)]
        assert curves[0] == curves[1], "the same run, bit for bit, wherever it is made"


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["--preset", "quick", "--executor", "ray", "--out", str(tmp_path)]
    assert figure2.main(command) == 2
    assert "needs Ray: pip install -e '.[ray]'" in capsys.readouterr().err.splitlines()[-1]
