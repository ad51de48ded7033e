"""Parameter-efficient fine-tuning: a few new parameters learn, the checkpoint's own stay."""
