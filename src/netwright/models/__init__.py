"""Whole architectures, by domain."""
