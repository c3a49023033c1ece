"""What rebalancing costs, beside BatchNorm and beside a pass over memory.

``asv run`` measures the history; ``python -m asv_benchmarks.table`` prints ratios from one process.
"""
