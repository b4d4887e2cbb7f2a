"""Folders: which arrangements of a data set are understood, and how it is split."""
