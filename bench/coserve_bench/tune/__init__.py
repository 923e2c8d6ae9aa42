"""Finds the way to serve an ensemble that suits a machine best.

Data flows one way: `candidates` (what to try) → `accuracy` (which of them are accurate enough) → `measure`
(how fast they are) → `choose` (all of it, as a report) → `table`.
"""
