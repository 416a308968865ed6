"""A trained field as other 3D representations."""
