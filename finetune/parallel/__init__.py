"""How a fine-tuning run is spread over its ranks: replicas, or DeepSpeed's ZeRO."""
