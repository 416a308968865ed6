"""`nerf bench`: time the backends that agree with the reference.

`parity` compares a backend with the reference, `kernels` times its operations one by one, and
`training` times whole steps. No backend is timed that fails the comparison.
"""
