"""The `coserve` command: one thin module per verb."""
