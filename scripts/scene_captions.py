"""What is said of a scene: true sentences."""

from __future__ import annotations

from scene_things import load_things


def with_article(name: str) -> str:
    return f"{load_things()[name]['article']} {name}"


def describe(
    things: list[str], relation: str | None, background: str, where: str | None
) -> list[str]:
    """All the captions of a scene."""
    named = [with_article(name) for name in things]
    if len(things) == 1:
        return describe_one(things[0], background, where)
    if len(things) == 2:
        return describe_two(named[0], named[1], relation)
    return describe_three(named[0], named[1], named[2], relation)


def describe_one(name: str, background: str, where: str | None) -> list[str]:
    thing = with_article(name)
    article = "an" if background == "orange" else "a"
    captions = [
        f"{thing} on {article} {background} background",
        f"{thing} by itself",
        f"a single {name}",
        f"nothing but {thing}",
    ]
    return [*captions, f"{thing} {where}"] if where else captions


def describe_two(first: str, second: str, relation: str | None) -> list[str]:
    if relation == "left of":
        return [
            f"{first} to the left of {second}",
            f"{second} to the right of {first}",
            f"{first} on the left and {second} on the right",
            f"{second} on the right and {first} on the left",
        ]
    return [
        f"{first} above {second}",
        f"{second} below {first}",
        f"{first} at the top and {second} at the bottom",
        f"{second} at the bottom and {first} at the top",
    ]


def describe_three(first: str, second: str, third: str, relation: str | None) -> list[str]:
    there, back, forth = (
        ("left", "right", "from left to right")
        if relation == "left of"
        else ("top", "bottom", "from top to bottom")
    )
    return [
        f"{first}, {second} and {third} {forth}",
        f"{third}, {second} and {first} from {back} to {there}",
        f"{forth}: {first}, {second}, {third}",
        f"from {back} to {there}: {third}, {second}, {first}",
    ]
