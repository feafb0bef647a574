"""Train a classifier from a cache, and report the joules of every epoch next to its loss and accuracy.

`trainer.train` trains, `callback.EnergyCallback` meters any Keras training. `results` imports no TensorFlow.
"""
