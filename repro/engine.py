"""Forward and backward of several networks of one shape as one batched model, in place.

The networks stay what they are, ``nn.Sequential`` with parameters of their own that optimisers and
ENorm work on; here their weights share memory, so that one batched product serves a layer of all of
them. Activations and gradients have fixed places: nothing is allocated between steps, which on a
CPU costs as much as the products of a wide layer, and which lets a GPU replay a step as one graph.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.data import Tensors

# Before a graph is captured, as torch's documentation on CUDA graphs advises.
_DIRECT_CALLS = 3


@dataclass
class _BatchNorm:
    """BatchNorms of all networks side by side: all vectors have ``R · features`` entries."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor
    momentum: float
    eps: float


@dataclass
class _Layer:
    """A Linear of all networks, ``(*lead, out, in)``, and the BatchNorm behind it."""

    weight: Tensor
    weight_gradient: Tensor
    bias: Tensor | None = None
    bias_gradient: Tensor | None = None
    batchnorm: _BatchNorm | None = None


class Stack:
    """Networks from :func:`repro.model.build` that differ in nothing but their numbers.

    R networks have the lead ``(R,)`` in front of all shapes, one network has none: then products
    are those that its own modules would compute.

    Args:
        models: the networks, on one device. Their parameters are replaced by new ones that share
            memory, each with a ``grad`` that every :meth:`backward` overwrites: build optimisers
            afterwards, and never set gradients to None.
    """

    def __init__(self, models: Sequence[nn.Sequential]) -> None:
        self._lead = (len(models),) if len(models) > 1 else ()
        self._softmax = isinstance(models[0][-1], nn.Softmax)
        self._layers: list[_Layer] = []
        self._places: dict[int, list[Tensor]] = {}
        for modules in zip(*models, strict=True):
            if isinstance(modules[0], nn.Linear):
                layer = _Layer(*self._shared(modules, "weight"))
                if modules[0].bias is not None:
                    layer.bias, layer.bias_gradient = self._shared(modules, "bias")
                self._layers.append(layer)
            elif isinstance(modules[0], nn.BatchNorm1d):
                assert modules[0].momentum is not None
                weight, weight_gradient = self._shared(modules, "weight")
                bias, bias_gradient = self._shared(modules, "bias")
                self._layers[-1].batchnorm = _BatchNorm(
                    weight.view(-1),
                    bias.view(-1),
                    self._shared_buffer(modules, "running_mean").view(-1),
                    self._shared_buffer(modules, "running_var").view(-1),
                    weight_gradient.view(-1),
                    bias_gradient.view(-1),
                    modules[0].momentum,
                    modules[0].eps,
                )

    def _shared(self, modules: Sequence[nn.Module], name: str) -> tuple[Tensor, Tensor]:
        """All values and all gradients of one parameter."""
        values = torch.stack([module.get_parameter(name).detach() for module in modules])
        gradients = torch.zeros_like(values)
        for module, value, gradient in zip(modules, values, gradients, strict=True):
            parameter = nn.Parameter(value)
            parameter.grad = gradient
            module.register_parameter(name, parameter)
        shape = (*self._lead, *values.shape[1:])
        return values.view(shape), gradients.view(shape)

    def _shared_buffer(self, modules: Sequence[nn.Module], name: str) -> Tensor:
        values = torch.stack([module.get_buffer(name) for module in modules])
        for module, value in zip(modules, values, strict=True):
            module.register_buffer(name, value)
        return values

    @torch.no_grad()
    def backward(self, data: Tensors, batch: Tensor) -> Tensor:
        """Gradients of each network's mean cross-entropy over its images of ``batch``.

        Args:
            data: the images.
            batch: indices of training images, ``(*lead, images)``.

        Returns:
            The losses, ``lead``.
        """
        activations = self._activations(batch.shape[-1])
        indices = batch.flatten()
        torch.index_select(data.train, 0, indices, out=activations[0].view(len(indices), -1))
        normalized: list[tuple[Tensor, Tensor, Tensor] | None] = []
        last = len(self._layers) - 1
        for k, layer in enumerate(self._layers):
            above = activations[k + 1]
            _product(activations[k], layer.weight.mT, above, layer.bias)
            normalized.append(None)
            if (norm := layer.batchnorm) is not None:
                before = self._side_by_side(above).clone()
                after, mean, inverse = torch.native_batch_norm(
                    before,
                    *(norm.weight, norm.bias, norm.mean, norm.variance),
                    training=True,
                    momentum=norm.momentum,
                    eps=norm.eps,
                )
                normalized[k] = before, mean, inverse
                above.copy_(self._stacked(after))
            if k < last:
                above.relu_()
        losses, gradient = self._loss(activations[-1], data.train_labels[batch])
        for k in range(last, -1, -1):
            layer, below = self._layers[k], activations[k]
            if (saved := normalized[k]) is not None:
                gradient = self._through(layer.batchnorm, saved, gradient)
            _product(gradient.mT, below, layer.weight_gradient)
            if layer.bias_gradient is not None:
                torch.sum(gradient, -2, out=layer.bias_gradient)
            if k > 0:
                onwards = torch.empty_like(below)
                _product(gradient, layer.weight, onwards)
                # The place of ReLU's output tells where it was above zero.
                gradient = torch.ops.aten.threshold_backward(onwards, below, 0)
        return losses

    def _activations(self, size: int) -> list[Tensor]:
        """Places for the inputs of all layers and the last one's outputs."""
        if size not in self._places:
            widths = [self._layers[0].weight.shape[-1]]
            widths += [layer.weight.shape[-2] for layer in self._layers]
            self._places[size] = [
                self._layers[0].weight.new_empty(*self._lead, size, width) for width in widths
            ]
        return self._places[size]

    def _loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropies, ``lead``, and their gradient with respect to ``outputs``."""
        with torch.enable_grad():
            logits = outputs.detach().requires_grad_()
            scores = F.softmax(logits, -1) if self._softmax else logits
            if self._lead:
                each = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
                losses = each.view(labels.shape).mean(-1)
            else:
                losses = F.cross_entropy(scores, labels)
            (gradient,) = torch.autograd.grad(losses.sum(), logits)
        return losses.detach(), gradient

    def _through(
        self, norm: _BatchNorm | None, saved: tuple[Tensor, Tensor, Tensor], gradient: Tensor
    ) -> Tensor:
        """The gradient in front of a BatchNorm in training mode, from the one behind it."""
        assert norm is not None
        before, mean, inverse = saved
        found, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            self._side_by_side(gradient),
            before,
            *(norm.weight, norm.mean, norm.variance, mean, inverse),
            True,
            norm.eps,
            [True, True, True],
        )
        norm.weight_gradient.copy_(weight_gradient)
        norm.bias_gradient.copy_(bias_gradient)
        return self._stacked(found)

    def _side_by_side(self, stacked: Tensor) -> Tensor:
        """``(R, images, features)`` as ``(images, R · features)``."""
        return stacked.transpose(0, 1).flatten(1) if self._lead else stacked

    def _stacked(self, side_by_side: Tensor) -> Tensor:
        """The way back."""
        if not self._lead:
            return side_by_side
        return side_by_side.view(len(side_by_side), *self._lead, -1).transpose(0, 1)


def _product(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
    """``a @ b + bias`` of one pair of matrices or of a stack of them."""
    if bias is None:
        (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out=out)
    elif a.dim() == 2:
        torch.addmm(bias, a, b, out=out)
    else:
        torch.baddbmm(bias.unsqueeze(-2), a, b, out=out)


class Step:
    """A function of a batch of indices that a GPU replays as one graph.

    On other devices it is called as it is. On a GPU the first calls with each batch size run
    directly, for libraries set themselves up in them; then one is captured, and replayed ever
    after. What ``function`` does besides GPU work happens in the direct calls and when capturing.

    Args:
        function: from indices, ``(*lead, images)``, to losses, ``lead``.
        device: where.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.function = function
        self._device = device
        self._calls: dict[int, int] = {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, batch: Tensor) -> Tensor:
        """The losses of one step; with a graph, they stand until the next."""
        if self._device.type != "cuda":
            return self.function(batch)
        # Capturing waits for the current device, which may be another one.
        with torch.cuda.device(self._device):
            return self._on_gpu(batch)

    def _on_gpu(self, batch: Tensor) -> Tensor:
        size = batch.shape[-1]
        if size not in self._graphs and self._calls.get(size, 0) < _DIRECT_CALLS:
            self._calls[size] = self._calls.get(size, 0) + 1
            return self._direct(batch)
        if size not in self._graphs:
            indices = batch.clone()
            graph = torch.cuda.CUDAGraph()
            with _without_collection(), torch.cuda.graph(graph, stream=self._stream):
                losses = self.function(indices)
            self._graphs[size] = graph, indices, losses
        graph, indices, losses = self._graphs[size]
        indices.copy_(batch)
        graph.replay()
        return losses

    def _direct(self, batch: Tensor) -> Tensor:
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            losses = self.function(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return losses


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """A graph of a former run that is destroyed now would spoil the one that is being captured."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
