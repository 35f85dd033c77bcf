"""The model card of a run: what its folder tells, and what a person says of it."""
