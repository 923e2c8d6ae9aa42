"""Serves ensembles of image classifiers over HTTP; members run concurrently, their logits are averaged."""

import os

# Its official builds for Linux send usage data since 1.29; it reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
