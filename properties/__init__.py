"""What Equi-normalization promises, as properties over drawn networks.

Specs describe networks (:mod:`properties.specs`), strategies draw them
(:mod:`properties.strategies`) within what the implementation under test declares
(:mod:`properties.implementation`, :mod:`properties.adapters`). It is held against Algorithm 1 in
plain loops (:mod:`properties.oracle`) and against the problem stated a second time, for
``scipy.optimize`` (:mod:`properties.convex`); tolerances are derived in one place
(:mod:`properties.tolerances`). :mod:`properties.replay` runs one failing example again, and
:mod:`properties.meta` tests the suite itself.
"""
