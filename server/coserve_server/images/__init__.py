"""Decode images and turn them into tensors."""
