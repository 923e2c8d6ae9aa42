"""Training on several devices.

batch_norm_sync.py  batch-norm statistics shared among processes without GPUs
placement.py        one member per process
"""
