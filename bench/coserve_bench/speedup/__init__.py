"""Measures how much faster a network runs on a machine once it is divided.

Data flows one way: `random_weights` or a model repository → `family` (what to compare) → `ways` (how to run
it) → `measure`, `peak` and `memory` → `report` → `table` and `plots`.
"""
