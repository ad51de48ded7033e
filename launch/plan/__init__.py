"""What layout a run should have, how long it takes, and how far it scales. Imports no torch."""
