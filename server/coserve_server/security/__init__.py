"""API keys, TLS, and their files."""
