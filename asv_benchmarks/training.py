"""``python -m asv_benchmarks.training --data PATH``: convolutional nets, AdamW, ENorm attached.

A VGG-11 with biases and torchvision's ResNet-18 take the same steps on the same batches of CIFAR-10
with and without ENorm. Around every one of its steps the outputs of both function forms are
compared on images of the test set, in eval mode. Writes ``training.md`` and ``training.svg``; needs
the ``repro`` extra.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import enorm
from asv_benchmarks.suite.networks import CONVOLUTIONAL, build
from repro.data import DataError, Tensors, load, tensors
from repro.options import given, illustrated, within

RATE, BATCH = 3e-4, 64
LABELS = {"vgg": "VGG-11 with biases", "resnet18": "ResNet-18"}
# Outputs compared around a step, and after how many steps noise is measured anew.
_COMPARED, _NOISE_EVERY = 16, 10

PAGE = """\
# Convolutional networks in training

Made by `python -m asv_benchmarks.training --data PATH{nets} --steps {steps} --out docs` with torch
{torch}, {threads} threads, on {form}: AdamW with rate {rate}, batches of {batch}, seed 0, with and
without `enorm.ENorm(model, optimizer).attach()` (p = 2, c = 1, one cycle per step).

* **loss**: mean cross-entropy of the last tenth of the steps, on their own batches; **accuracy**:
  percent of all test images, after the last step;
* **energy**: `Σ ‖W_k‖²` at the end, divided by that at the minimum of the same network;
* **error**: the largest change of an output by a step of ENorm on {compared} test images in eval
  mode, in units of 2⁻²⁴ times the largest output, as median and maximum over the steps; **noise**:
  the median of the same for 2⁻²⁴ of noise on every weight of the network at that time.

{table}

![Loss and function error per step]({plot})

One seed and few steps: that training runs and the function stays is what this shows, not which is
better.
"""


@dataclass(frozen=True)
class Run:
    """What one training gave; ``errors`` and ``noise`` in units of 2⁻²⁴, ENorm's only."""

    net: str
    with_enorm: bool
    losses: list[float]
    accuracy: float
    energy: float
    errors: list[float]
    noise: list[float]


def train(net: str, with_enorm: bool, data: Tensors, steps: int) -> Run:
    """AdamW on batches drawn with seed 0."""
    torch.manual_seed(0)
    model = build(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    images = data.test[:_COMPARED].view(-1, 3, 32, 32)
    errors: list[float] = []
    noise: list[float] = []
    outputs: list[Tensor] = []
    if with_enorm:
        rescaling = enorm.ENorm(model, optimizer)
        optimizer.register_step_post_hook(lambda *_: outputs.append(evaluate(model, images)))
        rescaling.attach()
        optimizer.register_step_post_hook(
            lambda *_: errors.append(units(outputs.pop(), evaluate(model, images)))
        )
    losses = []
    generator = torch.Generator().manual_seed(0)
    for step in tqdm(range(steps), desc=f"{net}, {'ENorm' if with_enorm else 'plain'}"):
        batch = torch.randint(len(data.train), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(
            model(data.train[batch].view(-1, 3, 32, 32)), data.train_labels[batch]
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if with_enorm and step % _NOISE_EVERY == 0:
            noise.append(units(evaluate(model, images), evaluate(noisy(model, step), images)))
    return Run(net, with_enorm, losses, accuracy(model, data), above(model), errors, noise)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor) -> Tensor:
    """Outputs in eval mode; the model stays in train mode."""
    model.eval()
    outputs: Tensor = model(images)
    model.train()
    return outputs


def units(before: Tensor, after: Tensor) -> float:
    """The largest difference, in units of 2⁻²⁴ of the largest output."""
    return 2.0**24 * float((after - before).abs().max() / before.abs().max())


@torch.no_grad()
def noisy(model: nn.Module, seed: int) -> nn.Module:
    """A copy with 2⁻²⁴ of noise on every weight."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in twin.parameters():
        parameter.mul_(1 + 2.0**-24 * torch.randn(parameter.shape, generator=generator))
    return twin


def accuracy(model: nn.Module, data: Tensors) -> float:
    """Percent of the test images."""
    pairs = zip(data.test.view(-1, 3, 32, 32).split(500), data.test_labels.split(500), strict=True)
    right = sum(int((evaluate(model, x).argmax(1) == y).sum()) for x, y in pairs)
    return 100 * right / len(data.test)


def above(model: nn.Module) -> float:
    """Energy ÷ that at the minimum."""
    result = enorm.balance_(copy.deepcopy(model))
    return result.energy_before / result.energy_after


def table(runs: Sequence[Run]) -> str:
    """Markdown."""
    lines = [
        "| network | | loss | accuracy | energy | error, median | largest | noise |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        last = run.losses[-max(1, len(run.losses) // 10) :]
        cells = [LABELS[run.net], "ENorm" if run.with_enorm else "without"]
        cells += [f"{sum(last) / len(last):.3f}", f"{run.accuracy:.1f}", f"{run.energy:.3f}"]
        if run.with_enorm:
            middle, noise = map(statistics.median, (run.errors, run.noise))
            cells += [f"{middle:.1f}", f"{max(run.errors):.1f}", f"{noise:.1f}"]
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(runs: Sequence[Run], file: Path) -> None:
    """Loss above, function error below; a column per network."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    nets = list(dict.fromkeys(run.net for run in runs))
    colours = {True: "#c2410c", False: "#475569"}
    with mpl.rc_context({"svg.hashsalt": "training", "svg.fonttype": "none"}):
        figure, axes = plt.subplots(
            2, len(nets), figsize=(4.6 * len(nets), 5.6), layout="constrained", squeeze=False,
            sharex=True,
        )  # fmt: skip
        for column, net in enumerate(nets):
            upper, lower = axes[:, column]
            for run in (one for one in runs if one.net == net):
                means = [
                    sum(part) / len(part)
                    for end in range(1, len(run.losses) + 1)
                    if (part := run.losses[max(0, end - 20) : end])
                ]
                label = "ENorm" if run.with_enorm else "without"
                upper.plot(means, color=colours[run.with_enorm], lw=1.3, label=label)
                if run.with_enorm:
                    lower.plot(run.errors, color=colours[True], lw=0.8, label="a step of ENorm")
                    places = range(0, len(run.errors), _NOISE_EVERY)
                    lower.plot(places, run.noise, ".", color="#0f766e", ms=4, label="2⁻²⁴ of noise")
            upper.set_title(LABELS[net], fontsize=10)
            upper.set_ylabel("loss, mean of 20 steps")
            lower.set_ylabel("change of outputs, units of 2⁻²⁴")
            lower.set_xlabel("step")
            lower.set_ylim(bottom=0)
            for one in (upper, lower):
                one.legend(frameon=False)
                one.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """Print the table; with ``--out`` write page and plot."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.training")
    parser.add_argument(
        "--data", type=given, default="cifar10", help="as of python -m repro.figure2"
    )
    parser.add_argument("--nets", nargs="+", default=CONVOLUTIONAL, choices=CONVOLUTIONAL)
    parser.add_argument(
        "--steps", type=within(1), default=300, help="of each training (default: 300)"
    )
    parser.add_argument("--out", type=illustrated, help="folder for training.md and training.svg")
    options = parser.parse_args()
    try:
        images = load(options.data)
    except DataError as error:
        parser.error(str(error))
    data = tensors(images, min(50_000, len(images.train)), torch.device("cpu"))
    runs = [
        train(net, with_enorm, data, options.steps)
        for net in options.nets
        for with_enorm in (False, True)
    ]
    text = PAGE.format(
        nets="" if options.nets == CONVOLUTIONAL else f" --nets {' '.join(options.nets)}",
        steps=options.steps,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        form=images.form,
        rate=RATE,
        batch=BATCH,
        compared=_COMPARED,
        table=table(runs),
        plot="training.svg",
    )
    if options.out is None:
        print(text)
        return
    plot(runs, options.out / "training.svg")
    (options.out / "training.md").write_text(text)


if __name__ == "__main__":
    main()
