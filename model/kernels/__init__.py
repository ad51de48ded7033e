"""Fused operations. Each file holds one: a plain reference and, where it pays, a kernel."""
