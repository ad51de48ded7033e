"""What a run will take, from its config alone: memory, time, storage, money. Imports no torch."""
