"""Speed benchmark: frame rate, time per stage, memory, and distance from the machine's floor."""
