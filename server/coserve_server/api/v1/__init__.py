"""The `/v1` API: images in, classes out."""
