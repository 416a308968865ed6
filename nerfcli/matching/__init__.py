"""Image features and matches between views."""
