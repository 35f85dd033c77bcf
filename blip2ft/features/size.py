"""Sizes on disk, for people."""


def told_size(size: float) -> str:
    """Bytes in words, of units of 1000: 640 B, 5.1 kB, 229.0 GB."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:,.1f} TB"
