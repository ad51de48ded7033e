"""Pre-flight: what is wrong with a run, and what it will take, before anything starts."""
