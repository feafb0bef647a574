"""What there is to say of a result: each module turns one kind of result into a Document."""
