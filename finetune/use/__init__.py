"""What is done with a fine-tuned model: export, prune, intents, monitor, a page to try it."""
