"""HTTP over the transport-free core."""
