"""Image features, and their matches between views."""
