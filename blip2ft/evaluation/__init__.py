"""How sure a score is, of which records it speaks, and whether two runs differ."""
