"""What this process may use of the machine: its cores, its memory, its files and streams."""
