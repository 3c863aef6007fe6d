"""Losses: what a network is trained to make small, beyond cross-entropy and squared error."""
