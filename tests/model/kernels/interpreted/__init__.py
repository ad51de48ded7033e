"""Kernels in Triton's interpreter, in fp32 and fp64: its bf16 is silently wrong."""
