"""Decode images and prepare them for a network, by one rule for training, calibration and serving.

The component needs Pillow and NumPy alone and imports no other component.
"""
