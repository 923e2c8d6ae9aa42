"""What the routes of every API read from a request."""
