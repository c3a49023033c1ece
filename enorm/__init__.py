"""Equi-normalization of ReLU networks (Stock, Graham, Gribonval, Jégou, ICLR 2019).

ENorm multiplies the weights that produce a hidden unit by ``d > 0`` and divides the weights that
consume it by ``d``, which leaves the function of a positively homogeneous network unchanged, and
chooses the scales so that the global p-norm of the weights reaches its minimum.

Data flows one way: model → plan (:func:`trace`) → scales → weights.

* :func:`trace` finds what may be rescaled and says why the rest may not;
* :func:`balance_` rescales once, to the minimum;
* :class:`ENorm` rescales by a cycle after every optimiser step;
* :func:`energy` and :func:`residual` measure, :func:`verify` checks the function;
* :func:`register_homogeneous`, :func:`register_state_rule` and :func:`plan_from_layers` say what
  cannot be found out;
* :mod:`enorm.compat` has the authors' signature, ``enorm.lightning`` and ``enorm.transformers``
  callbacks for two trainers;
* :mod:`enorm.reference` is the paper's Algorithm 1 in plain loops.
"""

from enorm import reference
from enorm._balance import BalanceResult, balance_, energy, residual
from enorm._descent import Progress
from enorm._followers import register_state_rule
from enorm._homogeneous import register_homogeneous
from enorm._manual import plan_from_layers
from enorm._plan import Consumer, Group, Layer, Plan, Producer, Skip
from enorm._rounding import error_bound
from enorm._stepper import ENorm
from enorm._trace import trace
from enorm._unsupported import UnsupportedModel
from enorm._verify import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "BalanceResult",
    "Consumer",
    "ENorm",
    "Group",
    "Layer",
    "Plan",
    "Producer",
    "Progress",
    "Skip",
    "UnsupportedModel",
    "Verification",
    "balance_",
    "energy",
    "error_bound",
    "plan_from_layers",
    "reference",
    "register_homogeneous",
    "register_state_rule",
    "residual",
    "trace",
    "verify",
]
