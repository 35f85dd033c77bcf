"""The model card of a run: what its folder tells, and what a person says of it."""

from blip2ft.card.card import Card, model_card

__all__ = ["Card", "model_card"]
