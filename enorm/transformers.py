"""ENorm as a callback of Hugging Face's ``Trainer``: ``pip install -e ".[transformers]"``."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from enorm._sharded import local
from enorm._stepper import ENorm


class ENormCallback(TrainerCallback):
    """Cycles of :class:`enorm.ENorm` after every optimizer step of ``Trainer.train``.

    A step that mixed precision skips is none, but for ``fused=True``. Each ``checkpoint-N`` folder
    gets a file ``enorm.pt`` with the state, or ``enorm.MODULE.pt`` for a submodule, from which a
    resumed training continues; not so in a search for hyperparameters. The trainer does not tell
    callbacks which folder it resumes from: it is looked for in ``output_dir``, and where
    ``TrainingArguments(resume_from_checkpoint=...)`` says, and has to be of the weights at hand.

    Args:
        module: the dotted name of the submodule to rescale, such as ``"resnet.encoder"``; ``""``
            for the model itself.
        options: of :class:`enorm.ENorm`: ``plan``, ``p``, ``c``, ``cycles`` and the others.

    Attributes:
        enorm: the :class:`enorm.ENorm` at work; None before the first training.

    Raises (when training begins):
        AttributeError: there is no such submodule.
        ValueError, TypeError, UnsupportedModel: as :class:`enorm.ENorm` does.

    Source: Stock et al. 2019, Algorithm 2.
    """

    def __init__(self, module: str = "", **options: Any) -> None:
        self._module = module
        self._file = f"enorm.{module}.pt" if module else "enorm.pt"
        self._options = options
        self._handle: RemovableHandle | None = None
        self.enorm: ENorm | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Trace the model and attach to the optimizer under accelerate's wrapper."""
        self._detach()
        model: nn.Module = kwargs["model"]
        optimizer: Optimizer = kwargs["optimizer"]
        inner = getattr(optimizer, "optimizer", optimizer)
        self.enorm = ENorm(model.get_submodule(self._module), inner, **self._options)
        if state.global_step > 0:
            self._resume(args, state)
        self._handle = self.enorm.attach()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the state beside the model's."""
        # A search puts checkpoints into folders of its trials, which nobody resumes from.
        if self.enorm is None or state.is_hyper_param_search:
            return
        if state.is_world_process_zero:
            path = _checkpoint(args, state) / self._file
            partial = path.with_suffix(".tmp")
            saved = {"state": self.enorm.state_dict(), "weights": _norms(self.enorm)}
            torch.save(saved, partial)
            os.replace(partial, path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach."""
        self._detach()

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        assert self.enorm is not None
        places = [_checkpoint(args, state) / self._file]
        if isinstance(args.resume_from_checkpoint, str):
            places.append(Path(args.resume_from_checkpoint) / self._file)
        for path in filter(Path.exists, places):
            saved = torch.load(path, weights_only=True)
            if _same(_norms(self.enorm), saved.get("weights")):
                self.enorm.load_state_dict(saved["state"])
                return
        warnings.warn(
            f"training resumes at step {state.global_step} with weights that no "
            f"{' or '.join(map(str, places))} belongs to, so that ENorm starts anew: say which "
            "folder by TrainingArguments(resume_from_checkpoint=...)",
            stacklevel=3,
        )

    def _detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _norms(enorm: ENorm) -> torch.Tensor:
    """1-norms of the parameters that are rescaled, to know them again by."""
    norms = [local(one.detach()).double().abs().sum().cpu() for one in enorm._tensors.values()]
    return torch.stack(norms)


def _same(norms: torch.Tensor, others: torch.Tensor | None) -> bool:
    if others is None or norms.shape != others.shape:
        return False
    # Another device may sum in another order.
    return torch.allclose(norms, others, rtol=1e-9, atol=0, equal_nan=True)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
