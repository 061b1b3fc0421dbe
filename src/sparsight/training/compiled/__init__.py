"""The sparse step on a CPU in compiled code: the same gradients and the same Adam, in as few passes over memory."""
