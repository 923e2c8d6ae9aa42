"""Load on a running server over HTTP, and what its answers take.

Data flows one way: `images` and `gateway` (what to send where) → `generator`, a process that runs `traffic`
over `connection`s → `results` (distributions) → `report` → `table`.
"""
