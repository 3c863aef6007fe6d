"""Pruning, quantization, elastic networks, search and distillation."""
