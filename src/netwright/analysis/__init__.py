"""What a given network is like: similarity, collapse, dimension, landscape, complexity, features."""
