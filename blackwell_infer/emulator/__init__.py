"""A PTX interpreter on NumPy: runs the text that NVRTC makes from our kernels, without a GPU."""
