"""Fused operations against their references."""
