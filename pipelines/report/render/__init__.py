"""Renderers of a `Document`: HTML, Markdown, terminal and notebook."""
