"""The pretraining run: config, objective, loop, evaluation."""
