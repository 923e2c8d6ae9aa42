"""Training on several devices.

batch_norm_sync.py  batch-norm statistics shared among processes without GPUs
launch.py           how the processes of a run are started
ending.py           how they end
placement.py        one member per process
"""
