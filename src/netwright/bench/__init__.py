"""Compare and reproduce: runner, store, statistics, report."""
