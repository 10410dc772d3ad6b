"""The three classes and their one order: every array with a class axis follows it."""

CLASSES = ("normal", "bacterial", "viral")
NORMAL, BACTERIAL, VIRAL = range(3)
