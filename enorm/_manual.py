"""The way out for forward code that cannot be traced: the caller says which layers follow."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import nn

from enorm._graph import check_module
from enorm._homogeneous import BATCH_NORMS, CONVOLUTIONS, LAYER_NORMS, LAYERS, TRANSPOSED, sizes_of
from enorm._modules import PAIR, fingerprint, unusable, wrong_shape
from enorm._plan import BatchNormRule, Consumer, Group, Layer, Plan, Producer, linked


def plan_from_layers(model: nn.Module, *chains: Sequence[str]) -> Plan:
    """The plan of chains of layers that the caller vouches for, without tracing.

    Within a chain each layer must read what the one before it makes, the whole of it and nothing
    else, through operations that satisfy ``f(d ⊙ x) = d ⊙ f(x)`` for ``d > 0`` per unit; and
    nobody else may read it. Nothing checks that: compare outputs with :func:`enorm.verify`.

    Args:
        model: the network.
        chains: names of modules in the order of their calls, such as
            ``["conv1", "bn1", "conv2", "fc"]``: Linear, convolutions and normalizations with
            affine parameters, or of classes made from these. What is not named is left alone, and
            not counted in the energy.

    Returns:
        The plan. A layer's depth is its place in its chain; chains end together.

    Raises:
        ValueError: a name is unknown or named twice, a module is of another kind or is not used
            through its own parameters, or sizes do not fit.
        TypeError: the model is no module, or a chain is a string or a set.

    Formula: Stock et al. 2019, §3.1.
    """
    check_module(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    reasons = unusable(model, (), frozenset())
    named: set[str] = set()
    for chain in chains:
        if isinstance(chain, str):
            raise TypeError(f"a chain must be a list of module names, got the string {chain!r}")
        if isinstance(chain, (set, frozenset)):
            raise TypeError("a chain must be a list of module names, for a set has no order")
    chains = tuple(tuple(chain) for chain in chains)
    for chain in chains:
        for name in chain:
            if name not in modules:
                raise ValueError(f"chain names {name!r}, which is no module of the model")
            if name in named:
                raise ValueError(f"{name!r} is named twice: a layer may be called once only")
            if name in reasons:
                raise ValueError(f"{name!r} cannot be rescaled: {reasons[name]}")
            named.add(name)
    print_, reference = fingerprint(model), weakref.ref(model)

    def plan(rule: BatchNormRule) -> Plan:
        groups: list[Group] = []
        layers: list[Layer] = []
        longest = max((_weighted(modules, chain) for chain in chains), default=0)
        for chain in chains:
            found = _chain(modules, chain, rule, longest - _weighted(modules, chain))
            groups += found[0]
            layers += found[1]
        return Plan(tuple(groups), (), tuple(layers), rule, print_, reference)

    return linked(plan("affine"), plan("ignore"))


def _weighted(modules: dict[str, nn.Module], chain: Sequence[str]) -> int:
    return sum(not _is_norm(modules[name]) for name in chain)


def _is_norm(module: nn.Module) -> bool:
    return _kind(module) in BATCH_NORMS or _kind(module) in LAYER_NORMS


def _kind(module: nn.Module) -> type[nn.Module]:
    """Of torch's classes, the one that it is of or that its own was made from."""
    return next((base for base in type(module).__mro__ if base in LAYERS), type(module))


def _chain(
    modules: dict[str, nn.Module], chain: Sequence[str], rule: BatchNormRule, depth: int
) -> tuple[list[Group], list[Layer]]:
    groups: list[Group] = []
    layers: list[Layer] = []
    producer: tuple[Producer, int] | None = None
    for name in chain:
        module = modules[name]
        kind = _kind(module)
        weight = module._parameters.get("weight")
        bias = f"{name}.bias" if module._parameters.get("bias") is not None else None
        is_layer = kind is nn.Linear or kind in CONVOLUTIONS or kind in TRANSPOSED
        if weight is None or not (is_layer or (_is_norm(module) and weight.dim() == 1)):
            raise ValueError(
                f"{name!r} is a {type(module).__name__}: name Linear, convolutions, and "
                "normalizations with affine parameters along one axis"
            )
        if more := [key for key, _ in module.named_parameters() if key not in PAIR]:
            raise ValueError(
                f"{name!r} cannot be rescaled: it has parameters beside weight and bias ({more[0]})"
            )
        if (wrong := wrong_shape(module, kind)) is not None:
            raise ValueError(f"{name!r} cannot be rescaled: {wrong}")
        own = Producer(name, f"{name}.weight", bias)
        if not is_layer:
            if rule == "ignore" and kind in BATCH_NORMS:
                continue
            layers.append(Layer(name, kind.__name__, own.weight, bias, depth, 0))
            producer = own, weight.numel()
            continue
        depth += 1
        split, transposed = getattr(module, "groups", 1), kind in TRANSPOSED
        inputs, outputs = sizes_of(module, weight)
        if producer is not None:
            before, size = producer
            if inputs % size:
                raise ValueError(
                    f"{name!r} reads {inputs} values, no multiple of the {size} units that "
                    f"{before.module!r} makes"
                )
            consumer = Consumer(name, own.weight, inputs // size)
            groups.append(Group((before,), (consumer,), size))
        layers.append(
            Layer(name, kind.__name__, own.weight, bias, depth, inputs, split, transposed)
        )
        producer = own, outputs
    return groups, layers
