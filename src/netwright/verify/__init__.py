"""Specifications, soundness of verifiers, attacks."""
