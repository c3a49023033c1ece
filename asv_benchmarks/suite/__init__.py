"""What ``asv run`` measures, and what has to run with every version of ``enorm`` there was."""
