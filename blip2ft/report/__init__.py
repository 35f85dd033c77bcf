"""A run's page, and a page that compares runs: one HTML file each, which needs no network."""
