"""Shared by the other packages: files, argument checks, progress, JSON, formatted quantities."""
