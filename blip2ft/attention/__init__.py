"""Pictures of where a model looks: its queries' cross-attention, and what of it a text weighs."""
