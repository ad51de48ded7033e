"""Several tasks over one trunk: `python -m finetune multitask CONFIG.yaml`."""
