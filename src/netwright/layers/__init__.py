"""Drop-in modules: replace a Linear, Conv, Norm, activation or attention layer."""
