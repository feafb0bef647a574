"""Audits: whether caching a chain pays, or which of several custom pipelines costs less."""
