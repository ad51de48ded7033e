"""How runs start, and the report of what they did. Starts without torch."""
