"""Frozen descriptions of networks: their ``repr`` is Python that builds them again."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

Convolution = type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]
_CONVOLUTIONS: dict[int, Convolution] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS = {
    ("max", 1): nn.MaxPool1d,
    ("max", 2): nn.MaxPool2d,
    ("max", 3): nn.MaxPool3d,
    ("avg", 1): nn.AvgPool1d,
    ("avg", 2): nn.AvgPool2d,
    ("avg", 3): nn.AvgPool3d,
}


class _Brief:
    """A dataclass whose repr leaves out what has its default value."""

    def __repr__(self) -> str:
        own = [(field, getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]
        text = ", ".join(
            f"{field.name}={value!r}" for field, value in own if value != field.default
        )
        return f"{type(self).__name__}({text})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What Hypothesis prints."""
        printer.text(repr(self))


@dataclass(frozen=True, repr=False)
class Hidden(_Brief):
    """One hidden layer and what follows it.

    Attributes:
        out: units or channels.
        kernel: kernel size of a convolution; 0 for a Linear.
        stride: stride of the convolution.
        padding: zero padding of the convolution.
        dilation: dilation of the convolution.
        bias: whether it has one.
        batchnorm: BatchNorm with affine parameters behind it.
        slope: negative slope; 0 is ReLU.
        pool: pooling by 2 behind the activation.
        dead_in: units whose incoming weights (or BatchNorm weight) are zero.
        dead_out: units whose outgoing weights are zero.
    """

    out: int
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    bias: bool = True
    batchnorm: bool = False
    slope: float = 0.0
    pool: Literal["max", "avg"] | None = None
    dead_in: tuple[int, ...] = ()
    dead_out: tuple[int, ...] = ()


@dataclass(frozen=True, repr=False)
class Net(_Brief):
    """A chain: hidden layers (convolutions first), then a Linear or a convolution to the outputs.

    Attributes:
        inputs: input features or channels.
        hidden: the hidden layers.
        outputs: output features.
        positions: input positions along each axis of a convolution.
        axes: number of those axes; 0 for a network of Linear layers.
        head: last layer, "conv" only behind convolutions.
        head_bias: whether that layer has a bias.
        decades: each unit's incoming weights are scaled by ``10^u``, u uniform on ±decades.
        input_scale: of the inputs: 1 for normalized images, 255 for raw pixels.
        dtype: name of the parameters' dtype.
        seed: of all weights and inputs.
    """

    inputs: int
    hidden: tuple[Hidden, ...]
    outputs: int = 2
    positions: int = 6
    axes: int = 0
    head: Literal["linear", "conv"] = "linear"
    head_bias: bool = True
    decades: float = 0.0
    input_scale: float = 1.0
    dtype: str = "float64"
    seed: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def build(self) -> nn.Sequential:
        """The network in eval mode, with BatchNorm statistics that are not the default ones."""
        generator = torch.Generator().manual_seed(self.seed)
        modules: list[nn.Module] = []
        inputs, positions = self.inputs, self.positions
        spatial = self.axes > 0
        for layer in self.hidden:
            if layer.kernel:
                convolution = _CONVOLUTIONS[self.axes]
                modules.append(
                    convolution(
                        inputs,
                        layer.out,
                        layer.kernel,
                        layer.stride,
                        layer.padding,
                        layer.dilation,
                        bias=layer.bias,
                    )
                )
                reach = layer.dilation * (layer.kernel - 1)
                positions = (positions + 2 * layer.padding - reach - 1) // layer.stride + 1
            else:
                if spatial:
                    modules.append(nn.Flatten())
                    inputs *= positions**self.axes
                    spatial = False
                modules.append(nn.Linear(inputs, layer.out, bias=layer.bias))
            if layer.batchnorm:
                modules.append(_BATCH_NORMS[self.axes if spatial else 0](layer.out))
            modules.append(nn.LeakyReLU(layer.slope) if layer.slope else nn.ReLU())
            if layer.pool is not None and spatial and positions >= 2:
                modules.append(_POOLS[layer.pool, self.axes](2))
                positions //= 2
            inputs = layer.out
        if self.head == "conv":
            modules.append(_CONVOLUTIONS[self.axes](inputs, self.outputs, 1, bias=self.head_bias))
        else:
            if spatial:
                modules.append(nn.Flatten())
                inputs *= positions**self.axes
            modules.append(nn.Linear(inputs, self.outputs, bias=self.head_bias))
        model = nn.Sequential(*modules)
        with torch.no_grad():
            for module in model:
                self._fill(module, generator)
            self._kill(model)
        return model.to(self.torch_dtype).eval()

    def draw_inputs(self, batch: int = 8) -> Tensor:
        """``(batch, inputs)`` or ``(batch, inputs, *positions)``, normal times ``input_scale``."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (batch, self.inputs, *[self.positions] * self.axes)
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (self.input_scale * normal).to(self.torch_dtype)

    def _fill(self, module: nn.Module, generator: torch.Generator) -> None:
        def normal(tensor: Tensor) -> Tensor:
            return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

        def spread(units: int) -> Tensor:
            uniform = torch.rand(units, generator=generator, dtype=torch.float64)
            return 10 ** (self.decades * (2 * uniform - 1))

        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            weight = module.weight
            scale = spread(len(weight)).view(-1, *[1] * (weight.dim() - 1))
            module.weight = nn.Parameter(
                normal(weight) * scale * math.sqrt(2 / math.prod(weight.shape[1:]))
            )
            if module.bias is not None:
                module.bias = nn.Parameter(0.3 * normal(module.bias))
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.weight = nn.Parameter(normal(module.weight) * spread(len(module.weight)))
            module.bias = nn.Parameter(0.3 * normal(module.bias))
            module.running_mean = 0.3 * normal(module.running_mean)
            module.running_var = 0.5 + normal(module.running_var).square()

    def _kill(self, model: nn.Sequential) -> None:
        layers = weighted(model)
        for (producer, norm), (consumer, _), spec in zip(
            layers, layers[1:], self.hidden, strict=False
        ):
            block = consumer.weight.shape[1] // spec.out
            for unit in spec.dead_in:
                (producer if norm is None else norm).weight[unit] = 0
            for unit in spec.dead_out:
                consumer.weight[:, unit * block : (unit + 1) * block] = 0


def weighted(model: nn.Sequential) -> list[tuple[nn.Linear, nn.BatchNorm2d | None]]:
    """Weighted layers in order, each with the BatchNorm that follows it (typed as one kind)."""
    pairs: list[tuple[nn.Linear, nn.BatchNorm2d | None]] = []
    for module in model:
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            pairs.append((module, None))  # type: ignore[arg-type]
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            pairs[-1] = (pairs[-1][0], module)  # type: ignore[assignment]
    return pairs
