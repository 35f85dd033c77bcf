"""Texts that are left out or masked on the way into training: harmful words, personal data."""
