"""Serves ensembles of image classifiers over HTTP; members run concurrently, their logits are averaged."""
