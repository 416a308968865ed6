"""`bench`: how fast a backend is here, after a check that it is right.

`parity` compares it with the reference, `kernels` times its operations one by one, `training`
whole steps with everything in them. Nothing is timed behind a failed comparison.
"""
