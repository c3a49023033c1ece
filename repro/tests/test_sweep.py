"""Nothing that finished runs twice, nothing half-written is taken for a record."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from repro import records
from repro.data import DataError, Images, synthetic
from repro.spec import RunSpec
from repro.sweep import run_all

CPU = torch.device("cpu")


def test_a_record_reads_back_as_it_was_written(
    spec: RunSpec, images: Images, tmp_path: Path
) -> None:
    specs = [spec, replace(spec, learning_rate=1e8, method="baseline")]
    done = run_all(specs, images, tmp_path, CPU)
    assert [record.spec for record in done] == specs
    assert [record.result.outcome for record in done] == ["finite", "diverged"]
    assert sorted(records.read_all(tmp_path), key=lambda r: r.key) == sorted(
        done, key=lambda r: r.key
    )
    for record in done:
        assert record.data["hash"] == images.hash
        assert record.data["form"] == images.form
        assert record.environment["threads"] == torch.get_num_threads()
        assert record.environment["torch"] == torch.__version__


def test_a_finished_run_is_never_repeated(spec: RunSpec, images: Images, tmp_path: Path) -> None:
    run_all([spec], images, tmp_path, CPU)
    (first,) = tmp_path.glob("*.json")
    before = first.stat()
    run_all([replace(spec, seed=1), spec], images, tmp_path, CPU)
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    assert first.stat().st_ino == before.st_ino


def test_other_images_are_other_runs(spec: RunSpec, images: Images, tmp_path: Path) -> None:
    """In a folder of their own, which is said before anything is trained."""
    (first,) = run_all([spec], images, tmp_path, CPU)
    others = synthetic(train=600, test=200, seed=1)
    with pytest.raises(ValueError, match=r"holds runs on other images .*: use another --out"):
        run_all([spec], others, tmp_path, CPU)
    assert len(list(tmp_path.glob("*.json"))) == 1
    (other,) = run_all([spec], others, tmp_path / "other", CPU)
    assert first.key != other.key


def test_too_few_images_are_noticed_before_any_run(
    spec: RunSpec, images: Images, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="601 training images are asked for"):
        run_all([spec, replace(spec, train_images=601)], images, tmp_path, CPU)
    assert not list(tmp_path.glob("*.json"))


def test_a_copied_record_is_no_further_run(spec: RunSpec, images: Images, tmp_path: Path) -> None:
    (record,) = run_all([spec], images, tmp_path, CPU)
    file = tmp_path / record.file_name
    (tmp_path / f"{file.stem} (1).json").write_bytes(file.read_bytes())
    assert list(records.read_all(tmp_path)) == [record]
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(ValueError, match="its key is not that of its spec"):
        list(records.read_all(tmp_path))


def test_keys_change_with_every_field(spec: RunSpec) -> None:
    changed: dict[str, Any] = {
        "method": "bn",
        "batchnorm": "affine",
        "order": "jacobi",
        "init": "normal",
        "statistics": "image",
        "schedule": "constant",
        "output": "softmax",
    }
    for item in fields(spec):
        if isinstance(getattr(spec, item.name), bool):
            changed[item.name] = not getattr(spec, item.name)
    for name in {item.name for item in fields(spec)} - set(changed):
        changed[name] = 2 * getattr(spec, name) + 1
    specs = [spec, *(replace(spec, **{name: value}) for name, value in changed.items())]
    assert len({each.key("hash") for each in specs}) == len(specs)
    assert spec.key("hash") != spec.key("other")


def test_newer_numerics_take_the_place_of_older(
    spec: RunSpec, images: Images, tmp_path: Path
) -> None:
    """A run that was made again counts once; one that was not still counts."""
    other = replace(spec, seed=1)
    done = run_all([spec, other], images, tmp_path, CPU)
    older = [
        replace(one, key=one.spec.key(images.hash, version), numerics_version=version)
        for one, version in zip(done, (1, 1), strict=True)
    ]
    records.write(tmp_path, older[0])
    assert list(records.read_all(tmp_path)) == sorted(done, key=lambda one: one.file_name)
    for path in tmp_path.glob(f"*{done[1].key[:12]}*"):
        path.unlink()
    records.write(tmp_path, older[1])
    assert {one.key for one in records.read_all(tmp_path)} == {done[0].key, older[1].key}


def test_a_file_that_is_no_record_is_named(spec: RunSpec, images: Images, tmp_path: Path) -> None:
    run_all([spec], images, tmp_path, CPU)
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match=rf"{path.name} is no whole run record"):
        run_all([spec], images, tmp_path, CPU)


def test_a_record_that_cannot_be_read_is_named(
    spec: RunSpec, images: Images, tmp_path: Path
) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match=r"folder\.json cannot be read: Is a directory"):
        run_all([spec], images, tmp_path, CPU)


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A real process, killed without warning after its first record."""
    command = [
        *(sys.executable, "-m", "repro.figure2", "--preset", "quick", "--depths", "1"),
        *("--seeds", "2", "--methods", "baseline", "--threads", "1", "--out", str(tmp_path)),
    ]
    folder = tmp_path / "records"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob("*.json")):
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (first,) = folder.glob("*.json")
    inode = first.stat().st_ino
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "run 1/1" in done.stderr
    assert "run 1/2" not in done.stderr
    assert first.stat().st_ino == inode
    assert len(list(folder.glob("*.json"))) == 2
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("result.accuracy", 77.7, "its accuracy, 77.7, is not that of the epoch it ends in"),
        ("result.curve.0.test_accuracy", 250.0, "a test accuracy of it is no percentage"),
        ("result.curve.0.test_accuracy", math.nan, "a test accuracy of it is no percentage"),
        ("result.curve", [], "its curve has 0 epochs, and 2 were ended"),
        ("result.diverged_at", [0, 3], "its curve has 2 epochs, and 0 were ended"),
        ("spec.method", "banana", "its method is 'banana', none of baseline, bn, enorm"),
        ("data.train_images", 10, "it was trained on more images than there are"),
        ("result.accuracy", None, "a result of it is no number"),
        ("result.accuracy", "50", "a result of it is no number"),
        ("result.outcome", "lost", "its outcome is 'lost', neither finite nor diverged"),
        ("result.outcome", "diverged", r"it diverged at None, not in a step of an epoch"),
        ("numerics_version", None, "its numerics_version is None, no whole number"),
        ("environment.threads", [1], "threads of its environment is neither a number nor a text"),
        ("environment", [], "list indices must be integers"),
        ("data.form", None, "'form'"),
        ("result", [], "list indices must be integers"),
    ],
)
def test_a_record_that_somebody_changed_is_named(
    part: str, value: Any, words: str, spec: RunSpec, images: Images, tmp_path: Path
) -> None:
    run_all([spec], images, tmp_path, CPU)
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    *outer, last = part.split(".")
    inner = content
    for one in outer:
        inner = inner[int(one) if one.isdigit() else one]
    inner[last] = value
    if part == "data.form":
        del inner[last]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{path.name} is no whole run record: .*{words}"):
        records.read(path)


def test_another_epoch_than_the_last_takes_validation(
    spec: RunSpec, images: Images, tmp_path: Path
) -> None:
    run_all([spec], images, tmp_path, CPU)
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    first = content["result"]["curve"][0]
    first["test_accuracy"] = content["result"]["accuracy"] = 99.0
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"its accuracy, 99\.0, is not that of the epoch"):
        records.read(path)


def test_a_record_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "enorm.json"
    path.write_bytes(b"\xd3\xff")
    with pytest.raises(ValueError, match=r"enorm\.json is no run record, for it is no text"):
        records.read(path)


def test_two_processes_on_one_folder_leave_whole_records(tmp_path: Path) -> None:
    """Both may make the same run; what is there in the end is one whole record of each."""
    command = [
        *(sys.executable, "-m", "repro.figure2", "--preset", "quick", "--depths", "1"),
        *("--seeds", "1", "--methods", "baseline", "enorm", "--epochs", "1"),
        *("--threads", "1", "--out", str(tmp_path)),
    ]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    found = list(records.read_all(tmp_path / "records"))
    assert sorted(record.spec.method for record in found) == ["baseline", "enorm"]
    assert not list(tmp_path.rglob("*.part"))


def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: writing fails half-way."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
        "from repro import figure2; sys.exit(figure2.main(sys.argv[1:]))"
    )
    command = [
        *(sys.executable, "-B", "-c", code, "--preset", "quick", "--depths", "1", "--seeds", "1"),
        *("--methods", "baseline", "--epochs", "1", "--out", str(tmp_path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == f"figure2: cannot write to {tmp_path}: File too large; use another --out"
    assert list((tmp_path / "records").iterdir()) == []
