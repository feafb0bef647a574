"""Train a classifier from a cache, and report the joules of every epoch next to its loss and accuracy.

`trainer.train` trains, `callback.EnergyCallback` measures any Keras training. `results` does not import TensorFlow.
"""
