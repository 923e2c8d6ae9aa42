"""Serve the ensemble with FastAPI alone: each request runs on the thread pool, without batching.

https://fastapi.tiangolo.com/tutorial/request-files/
"""

import sys
from typing import Any

import uvicorn
from ensemble import Ensemble
from fastapi import FastAPI, UploadFile
from PIL import Image

app = FastAPI()
ensemble = Ensemble()


@app.post("/classify")
def classify(image: UploadFile) -> dict[str, Any]:
    """Classify an image."""
    return ensemble.classify(ensemble.prepare(Image.open(image.file))[None])[0]


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
