"""Layers around the routes."""
