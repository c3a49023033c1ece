"""What :mod:`asv_benchmarks.gate` measures; apart from ``enorm``, which may be broken."""

NAMES = (
    "cycle, fc-9",
    "cycle, fc-19",
    "cycle, vgg",
    "balance, fc-9",
    "step with ENorm, fc-9, batch 8",
)
