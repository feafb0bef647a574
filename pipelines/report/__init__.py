"""Reports: a typed result becomes a `Document` (`describe`), which becomes HTML, Markdown, terminal or notebook output (`render`)."""
