"""Caches: records on disk, from the manifest down to the shards."""
