"""Make a trained classifier smaller, and measure what each step gains and costs.

`compression.compress` prunes channels and weights, shares weights and quantizes; `recipe.Recipe` says which of these,
and `results.Compression` holds the result. The last two import no TensorFlow.
"""
