"""The step on a GPU as a few Triton kernels over all parameters."""
