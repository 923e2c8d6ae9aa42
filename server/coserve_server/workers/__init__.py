"""Several processes that serve as one: a parent that accepts connections, and its workers."""
