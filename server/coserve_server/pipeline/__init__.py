"""The stages of a request: admission, preparation, batching, fan-out, combining."""
