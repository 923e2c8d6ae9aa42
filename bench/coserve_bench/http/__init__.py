"""Loads a running server over HTTP, and measures its latency and throughput.

Data flows one way: `images` and `gateway` (what to send where) → `generator`, a process that runs `traffic`
over `connection`s → `results` (distributions) → `report` → `table`.
"""
