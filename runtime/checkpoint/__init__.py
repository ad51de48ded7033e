"""Checkpoints: one Hugging Face directory per step, committed atomically, verified when read."""

from runtime.checkpoint.format import CheckpointInfo, list_checkpoints, newest_verified, verify

__all__ = ["CheckpointInfo", "list_checkpoints", "newest_verified", "verify"]
