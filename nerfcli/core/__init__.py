"""Errors, settings, files, devices, progress: what every other folder may use."""
