"""Implementations of ENorm as the suite wants to meet them, one module each."""
