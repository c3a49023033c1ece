"""The fully connected network of the experiment, and the streams of random numbers it uses."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from repro.data import CLASSES, PIXELS
from repro.spec import RunSpec

_STREAMS = {"weights": 0, "order": 1}


def generator(spec: RunSpec, stream: str) -> torch.Generator:
    """A CPU generator seeded by (seed, depth, stream) only, so that methods pair."""
    entropy = np.random.SeedSequence([spec.seed, spec.depth, _STREAMS[stream]])
    return torch.Generator().manual_seed(
        int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))
    )


def build(spec: RunSpec) -> nn.Sequential:
    """``3072–width``, depth × ``width–width``, ``width–10``; ReLU after all but the last.

    He initialisation on the fan-in, ``U(±sqrt(6 / fan_in))`` or ``N(0, 2 / fan_in)``; biases, where
    there are any, start at zero. No softmax unless asked for: the cross-entropy has its own.
    """
    sizes = [PIXELS, *[spec.width] * (spec.depth + 1), CLASSES]
    stream = generator(spec, "weights")
    modules: list[nn.Module] = []
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=spec.bias)
        fill = nn.init.kaiming_normal_ if spec.init == "normal" else nn.init.kaiming_uniform_
        fill(linear.weight, nonlinearity="relu", generator=stream)
        if spec.bias:
            nn.init.zeros_(linear.bias)
        modules.append(linear)
        if layer < len(sizes) - 2:
            if spec.uses_batchnorm:
                modules.append(nn.BatchNorm1d(fan_out))
            modules.append(nn.ReLU())
    if spec.output == "softmax":
        modules.append(nn.Softmax(dim=1))
    return nn.Sequential(*modules)
