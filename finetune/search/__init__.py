"""Many runs of one config: hyper-parameter search, seeds, cross-validation."""
