"""One file a scene format: files -> Source."""
