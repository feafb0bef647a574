"""Compress a trained classifier, and measure what each step saves and costs.

`compression.compress` prunes channels and weights, shares weights and quantizes, as a `recipe.Recipe` specifies, and returns
a `results.Compression`. `recipe`, `results`, `litert` and `beam_inference` do not import TensorFlow.
"""
