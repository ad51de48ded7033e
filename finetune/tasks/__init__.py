"""One module per task: what it reads, how it is encoded, and how it is scored."""
