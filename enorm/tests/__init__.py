"""Tests of what is this implementation's own: tracing, errors, state, precision."""
