"""Models that generate or reconstruct data."""
