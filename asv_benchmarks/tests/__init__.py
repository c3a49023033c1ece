"""Tests of the speed gate."""
