"""What executes the members of an ensemble."""
