"""What the other packages share: files, argument checks, progress, JSON, quantities as text."""
