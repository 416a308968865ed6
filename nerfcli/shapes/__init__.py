"""Meshes, points, voxels and signed distances, without any field."""
