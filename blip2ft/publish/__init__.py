"""A run on the hub: what goes out, that nothing private is in it, and the one commit."""
