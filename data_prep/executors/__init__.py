"""Ways to map the units of a plan: each one only decides where a unit runs."""
