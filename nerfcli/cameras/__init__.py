"""Rays, cameras, lenses, boxes and camera paths."""
