"""Forms of a Document: HTML, Markdown, the terminal and notebooks."""
