"""What a fine-tuning run has learned, and whether transfer was worth it, as pages to read."""
