"""The way of a request: admission, preparation, batching, fan-out, combining."""
