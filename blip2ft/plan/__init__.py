"""What a run will take, before it is paid for: memory, steps, time and disk."""
