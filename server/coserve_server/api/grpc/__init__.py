"""gRPC: the Open Inference Protocol's service, health and reflection."""
