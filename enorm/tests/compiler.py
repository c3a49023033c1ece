"""What torch.compile needs on a CPU."""

import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))),
    reason="no C++ compiler for torch.compile",
)
