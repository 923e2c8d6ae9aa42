"""Run folders: what training leaves behind, and what is measured of it."""
