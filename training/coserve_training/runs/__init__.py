"""Run folders: the results of training, and measurements of them.

folder.py           the folder's files, and loading a run from them
records.py          records of accuracy and calibration in the folder
images.py           the record of what was trained on, and what was held out
output.py           a check that the folder can be written
classes.py          recall by class, and the confusion matrix
extend.py           the configuration of a resumed run
start.py            the first files of a run, and what a resume changes in them
evaluate.py         accuracy of an ensemble and its members on labelled images
subsets.py          subsets of members and images to fit and to measure on
prediction_sets.py  sets that hold the true class as often as asked for
early_stopping.py   when the members that have answered are enough
calibrate.py        temperatures, and all of the above, recorded for export
"""
