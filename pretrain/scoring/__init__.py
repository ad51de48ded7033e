"""Scores of checkpoints on texts and tasks, outside of training."""
