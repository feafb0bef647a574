"""Arms measured in interleaved blocks: what audits and plans share."""
