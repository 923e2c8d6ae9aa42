"""The `/v2` API: the Open Inference Protocol and Triton's extensions."""
