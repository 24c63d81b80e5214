"""The zero-shot classifier and every metric of the papers."""
