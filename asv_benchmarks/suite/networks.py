"""The networks that are measured, by name: ``fc-DEPTH``, ``vgg`` and ``resnet18``."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import nn

Norm = Literal["none", "bn", "groupnorm"]

DEEP = ["fc-1", "fc-9", "fc-19"]
CONVOLUTIONAL = ["vgg", "resnet18"]
NETS = [*(f"fc-{depth}" for depth in range(1, 20, 2)), *CONVOLUTIONAL]

# Channels of the convolutions of a VGG-11 for images of 32 × 32; "M" is a maximum over 2 × 2.
_VGG = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


def build(net: str, device: str = "cpu", norm: Norm = "none") -> nn.Module:
    """A network with He-uniform weights, seeded by its name's depth.

    Args:
        net: one of :data:`NETS`. ``fc-DEPTH`` is the report's, without biases: 3072–500,
            depth × 500–500, 500–10. ``vgg`` has biases; ``resnet18`` is torchvision's.
        device: where it ends up.
        norm: in front of every activation; ``resnet18`` has BatchNorm for ``"none"`` too, since
            it does not train without.
    """
    generator = torch.Generator().manual_seed(int(net.removeprefix("fc-")) if "fc" in net else 0)
    if net == "resnet18":
        from torchvision.models import resnet18

        layer = _group_norm if norm == "groupnorm" else nn.BatchNorm2d
        model: nn.Module = resnet18(num_classes=10, norm_layer=layer)
    elif net == "vgg":
        model = _vgg(norm)
    else:
        model = _fully_connected(int(net.removeprefix("fc-")), norm)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
    return model.to(device)


def images(net: str, batch: int, device: str) -> torch.Tensor:
    """Normally distributed inputs."""
    generator = torch.Generator().manual_seed(0)
    shape = (3072,) if net.startswith("fc") else (3, 32, 32)
    return torch.randn(batch, *shape, generator=generator).to(device)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(32, channels), channels)


def _fully_connected(depth: int, norm: Norm) -> nn.Module:
    sizes = [3072, *[500] * (depth + 1), 10]
    modules: list[nn.Module] = []
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        modules.append(nn.Linear(fan_in, fan_out, bias=False))
        if layer <= depth:
            if norm != "none":
                modules.append(
                    nn.BatchNorm1d(fan_out) if norm == "bn" else nn.GroupNorm(20, fan_out)
                )
            modules.append(nn.ReLU())
    return nn.Sequential(*modules)


def _vgg(norm: Norm) -> nn.Module:
    modules: list[nn.Module] = []
    channels = 3
    for width in _VGG:
        if isinstance(width, str):
            modules.append(nn.MaxPool2d(2))
            continue
        modules.append(nn.Conv2d(channels, width, 3, padding=1))
        if norm != "none":
            modules.append(nn.BatchNorm2d(width) if norm == "bn" else _group_norm(width))
        modules.append(nn.ReLU())
        channels = width
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(channels, 10))
