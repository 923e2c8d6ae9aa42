"""HTTP connections below the application: limits and draining."""
