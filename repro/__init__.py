"""The report's experiments again: spec → run → record → table, figure and page.

The report is "Reproducibility of Equi-normalization of Neural Networks", which re-ran the fully
connected CIFAR-10 experiment of Stock et al. 2019. ``python -m repro.figure2`` runs its Figure 2.
"""
