"""Fine-tuning: tasks on top of a pretrained checkpoint, their scores, and prediction."""
