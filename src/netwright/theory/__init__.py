"""What theory predicts: criticality, learning curves, sample complexity, phase diagrams."""
