"""Build a cache: a plain function builds one shard, Beam runs it for all shards, and a manifest makes the result visible."""
