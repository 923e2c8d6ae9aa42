"""API keys, TLS, and the files they come from."""
