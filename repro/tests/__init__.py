"""Tests of the reproduction harness."""
