"""Fields and how they are trained: one file a method."""
