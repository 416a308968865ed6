"""One file a scene format: Source -> files."""
