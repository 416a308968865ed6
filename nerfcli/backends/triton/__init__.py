"""Triton kernels, each file the twin of the reference file whose stem it bears.

Common to all: n_live is a tensor [1] on the device, so that no launch waits for a count; rows
from n_live on are padding, neither read nor written. Importing these modules needs `triton`.
"""
