"""The image classifiers that are trained and compressed.

`classifiers` builds them by name or loads them from files, `fitting` trains them, `macs` counts their operations.
"""
