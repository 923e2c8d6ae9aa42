"""Runs every member on Triton servers, over asynchronous gRPC."""
