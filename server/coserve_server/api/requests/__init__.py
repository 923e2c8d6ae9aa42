"""Reads requests: bodies, parameters, permissions."""
