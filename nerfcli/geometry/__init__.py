"""Shapes other than the field, how close two of them are, and how a mesh is fitted to one.

All coordinates are in the frame and unit of the file they came from; nothing here rescales.
"""
