"""What frozen parts compute of images, computed once and kept on disk."""
