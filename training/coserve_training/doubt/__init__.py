"""What an ensemble knows about its own doubt.

measures.py    doubt about each image, by several measures: `measure_doubt`
selective.py   accuracy of the answers with the least doubt: `selective_accuracy`
detection.py   telling images of other kinds apart: `separate`
corruptions/   corrupted copies of images: `corrupt`
robustness.py  scores on corrupted copies
assess.py      all of these for a run: `assess_run`
"""
