"""The forward code as ``torch.fx`` graphs, recorded without a trace left in the model."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from enorm._calls import is_scripted, unseen_call
from enorm._examples import Inputs, inputs_of, shapes_of
from enorm._functional import DESCRIBING, attribute, name_modules, reads_values
from enorm._homogeneous import registered_functions
from enorm._memory import storage
from enorm._sharded import own_hooks, why_not
from enorm._tracer import TORCH, Tracer
from enorm._unsupported import ESCAPE, UnsupportedModel
from enorm._untouched import Randomness, untouched

# Whether some operations may compute in another precision than that of their inputs.
AUTOCAST = "autocast"

# Attributes of a ``GraphModule``, which a part of the model would hide, or they it.
_TAKEN = ({*dir(fx.GraphModule)} - {*dir(nn.Module)}) | {"meta"}


@dataclass(frozen=True)
class Recording:
    """One way through the forward code.

    Attributes:
        graph_module: what ``torch.fx`` recorded; modules in place of layers' functions.
        shapes: of intermediate tensors, where example inputs made them known.
        read: storages of tensors that the code computed with itself, in the graph or around it.
        kept: values that the code still holds when it is done, as in an attribute.
        asked: lines of code that went on by the sizes of the example inputs.
    """

    graph_module: fx.GraphModule
    shapes: Mapping[fx.Node, torch.Size]
    read: frozenset[int]
    kept: frozenset[fx.Node]
    asked: tuple[str, ...]

    def calls(self) -> dict[fx.Node, nn.Module]:
        """What each node calls that calls a module: the model's own, or what stands in for it."""
        return {
            node: self.graph_module.get_submodule(str(node.target))
            for node in self.graph_module.graph.nodes
            if node.op == "call_module"
        }


def record(model: nn.Module, example_inputs: Any = None) -> tuple[Recording, Recording]:
    """The forward code in eval mode and in train mode; the model's own modes do not matter.

    Arguments that have a default keep it, unless ``example_inputs`` reaches that far.

    Raises:
        UnsupportedModel: ``torch.fx`` cannot trace it, or the example inputs do not fit.
        TypeError: the example inputs are no tensors.
    """
    check_kind(model)
    inputs = inputs_of(model, example_inputs)
    recordings = [_recorded(model, inputs, training) for training in (False, True)]
    for recording in recordings:
        # A value kept by one adds to its graph what the other does with it.
        _check_kept(model, recording.graph_module.graph)
    return recordings[0], recordings[1]


def symbolic_trace(model: nn.Module, example_inputs: Any = None) -> fx.GraphModule:
    """``torch.fx.symbolic_trace``, its failures told with the line of the model's own code.

    Args:
        model: the network, in the mode that is to be traced.
        example_inputs: as of :func:`record`.

    Raises:
        UnsupportedModel: it cannot be traced.
    """
    check_kind(model)
    return _recorded(model, inputs_of(model, example_inputs), None).graph_module


def _recorded(model: nn.Module, inputs: Inputs, training: bool | None) -> Recording:
    """In eval mode, in train mode, or, then without shapes, in the mode that it is in."""
    try:
        return _attempt(model, inputs, training, sized=False)
    except UnsupportedModel as refusal:
        if not isinstance(refusal.__cause__, TypeError):
            raise
    # As torch raises where a size is a value of the graph.
    return _attempt(model, inputs, training, sized=True)


def _attempt(model: nn.Module, inputs: Inputs, training: bool | None, *, sized: bool) -> Recording:
    with untouched(model) as randomness:
        if training is not None:
            set_mode(model, training)
        tracer = Tracer(inputs, sized=sized, autowrap_functions=registered_functions())
        reads = _Reads()
        with reads:
            graph_module = _traced(model, tracer, randomness)
            kept = tracer.kept()
        replaced = name_modules(graph_module)
        kept = frozenset(replaced.get(node, node) for node in kept)
        shapes = shapes_of(graph_module, inputs) if inputs and training is not None else {}
    read = reads.storages | tracer.read
    for node in graph_module.graph.nodes:
        if reads_values(node) and isinstance(value := attribute(graph_module, node), Tensor):
            read.add(storage(value))
    return Recording(graph_module, shapes, frozenset(read), kept, tuple(tracer.asked))


def _traced(model: nn.Module, tracer: Tracer, randomness: Randomness) -> fx.GraphModule:
    try:
        with warnings.catch_warnings():
            # What the code is warned of, it is when it runs.
            warnings.simplefilter("ignore")
            for module in model.modules():
                # Hooks of the old kind look for a tensor in the output until they find one.
                if module._is_full_backward_hook is False:
                    module._backward_hooks = OrderedDict()
            graph = tracer.trace(model)
            _check_drawn(model, randomness.moved())
            for node in graph.nodes:
                # Code that fx generates would wrap the function again, by a name that may not be.
                node.meta.pop("is_wrapped", None)
            made = fx.GraphModule(tracer.root, graph, type(model).__name__)
            made.meta[AUTOCAST] = tracer.autocast
            return made
    except UnsupportedModel:
        raise
    except Exception as error:
        # Whatever the model's own forward code raises under tracing ends here, with its line.
        last = error.__traceback__
        place = ""
        while last is not None:
            code = last.tb_frame.f_code
            if code.co_name == "forward" and not code.co_filename.startswith(TORCH):
                place = f" at {code.co_filename}:{last.tb_lineno}"
            last = last.tb_next
        hint = ""
        if tracer.hooked:
            hint = "Forward hooks, by which it may collect values, are not run by tracing. "
        if tracer.lacking:
            hint += "If it asks for sizes there, give enorm.trace example_inputs. "
        elif not any(node.op == "placeholder" for node in tracer.graph.nodes):
            hint += "All arguments keep their defaults: give enorm.trace example_inputs. "
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be traced{place}: {type(error).__name__}: {error}. "
            f"{hint}{ESCAPE}"
        ) from error


def _check_drawn(model: nn.Module, drawn: Sequence[str]) -> None:
    """Raise UnsupportedModel if another call may go another way than the one recorded."""
    if drawn:
        mode = "train" if model.training else "eval"
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be traced: in {mode} mode its forward code draws from "
            f"{' and '.join(drawn)}, so that another call may go another way than the one "
            f"recorded. {ESCAPE}"
        )


def _check_kept(model: nn.Module, graph: fx.Graph) -> None:
    """Raise UnsupportedModel if a value of another call takes part in this one."""
    own = set(graph.nodes)
    if any(source not in own for node in graph.nodes for source in node.all_input_nodes):
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be traced: its forward code goes on with values that "
            f"it has kept from another call. {ESCAPE}"
        )


def check_module(model: Any) -> None:
    """Raise TypeError if it is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_kind(model: Any) -> None:
    """Raise for what is no model, wraps one, has taken its weights apart, or hides its code.

    Raises:
        TypeError: it is no module.
        UnsupportedModel: it is one that tracing cannot see through.
    """
    check_module(model)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UnsupportedModel(f"{type(model).__name__} wraps a model: pass model.module")
    if is_scripted(model):
        raise UnsupportedModel(
            "this is a model that torch.jit has compiled: pass the one it was made from"
        )
    if (reason := why_not(model)) is not None:
        raise UnsupportedModel(f"{type(model).__name__} cannot be traced: {reason}")
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModel("this is a compiled model: pass the model that was compiled")
    if taken := [name for name in model._modules if name in _TAKEN]:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be traced: torch.fx keeps the name {taken[0]!r} for "
            f"itself: give that part another one. {ESCAPE}"
        )
    if own_hooks(model):
        raise UnsupportedModel(
            f"{type(model).__name__} has forward hooks itself, which tracing does not see: remove "
            "them, trace, and register them again"
        )
    if _global_forward_hooks or _global_forward_pre_hooks:
        raise UnsupportedModel(
            "forward hooks of all modules are registered, which tracing does not see: remove "
            "them, trace, and register them again"
        )
    if (reason := unseen_call(model)) is not None:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be traced: {reason}, and tracing sees only the forward "
            f"of the class: put that code there. {ESCAPE}"
        )


class _Reads(TorchFunctionMode):
    """Collects the storages of real tensors that functions are called with while tracing.

    The graph's own tensors are proxies then, so a real one is a parameter or a buffer that the
    code reached around ``torch.fx``, or a constant.
    """

    _HARMLESS = frozenset(getattr(Tensor, name).__get__ for name in DESCRIBING)

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function not in self._HARMLESS:
            with torch._C.DisableTorchFunction():
                for value in tree_leaves((args, kwargs or {})):
                    if isinstance(value, Tensor):
                        self.storages.add(storage(value))
        return function(*args, **(kwargs or {}))


def set_mode(model: nn.Module, training: bool) -> None:
    """``model.train(training)``.

    Raises:
        UnsupportedModel: its class means something else by ``train``.
    """
    try:
        model.train(training)
    except Exception as error:
        raise UnsupportedModel(
            f"{type(model).__name__}.train({training}) does not set the mode, but raises "
            f"{type(error).__name__}: {error}. {ESCAPE}"
        ) from error
