"""What Equi-normalization promises, as properties over drawn networks.

Specs describe networks (:mod:`properties.specs`), strategies draw them
(:mod:`properties.strategies`), tolerances are derived in one place
(:mod:`properties.tolerances`), and :mod:`properties.convex` states the problem a second time, for
``scipy.optimize``.
"""
