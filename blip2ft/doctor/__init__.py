"""What a machine has, and whether a run of some settings would start on it."""
