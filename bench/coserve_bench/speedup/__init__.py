"""What dividing a network gains in speed on a machine.

Data flows one way: `random_weights` or a model repository → `family` (what to compare) → `ways` (how to run
it) → `measure`, `peak` and `memory` → `report` → `table` and `plots`.
"""
