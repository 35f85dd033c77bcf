"""Numbers of things in words."""


def counted(number: int, noun: str) -> str:
    """The two together, such as "1 step", "2 processes" and "12,000 micro-batches"."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{ending}"
