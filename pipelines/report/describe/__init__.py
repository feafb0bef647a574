"""Descriptions of results: each module turns one kind of result into a `Document`."""
