"""What engines share that run members in this process: lanes, generations, taking turns, hot reload."""
