"""The step on the CPU as one compiled loop over all parameters."""
