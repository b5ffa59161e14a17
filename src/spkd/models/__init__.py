"""Networks by name, their weights, and what they cost."""
