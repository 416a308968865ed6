"""The compiled CPU kernels: C++ sources, their build, and the library loaded through ctypes."""
