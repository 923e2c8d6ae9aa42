"""From encoded bytes to tensors."""
