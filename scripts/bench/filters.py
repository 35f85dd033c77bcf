"""Filters on harmless captions: how fast they are, and how often they are wrong.

    python scripts/bench/filters.py

Looked at are the captions of data/scenes, all of them harmless, captions that are written to be
mistaken (birds, names, places, numbers on signs), and random numbers. One process.
"""

import random
import time
from collections import Counter
from pathlib import Path

from blip2ft.data.records import read_records
from blip2ft.filters.rules import Rules
from blip2ft.filters.texts import judge, judge_all

SCENES = Path(__file__).parents[2] / "data" / "scenes"
FILTERS = {"harmful": Rules("drop"), "personal": Rules(personal="mask")}
FILTERS["both"] = Rules("drop", "mask")
NUMBERS = 1000

HARD = """
a great tit on a branch; blue tits at a feeder; boobies on the Galapagos; a cock and two hens
a peacock in the park; the cockpit of a plane; a cocktail on the bar; a shuttlecock on the grass
shiitake mushrooms in a pan; a chicken breast on a plate; a woman breastfeeding; a red bra on a line
pussy willow in a vase; a street sign in Scunthorpe; Dick Van Dyke on stage; Moby Dick on a shelf
a donkey, also called an ass; an assassin on a poster; a classic car on the grass; a bass guitar
a nude statue in a museum; a naked baby in a bath; a sexy dress; a bitch with her puppies
two gay men kissing at their wedding; a lesbian couple; a black man and a white woman; a queer flag
a nazi uniform in a museum; Hitler in a history book; a toy gun; a dead bird; a drunk man on a bench
a hell of a view; a virgin forest; a fat cat; an ugly sweater; an idiot's guide; a bottle of rum
a spade and a hoe in a garden; a hooker in a rugby team; a beaver at its dam; a crack in the wall
the town of Fucking in Austria; a view of Essex; the Hancock tower; a sheet of paper; a Japanese fan
a bus with the number 12345678; a sign of 12/05/2024; a clock at 10:33:21; a plate with 4567 8901
a photo of 1600 x 1200; IMG_20190314_155210; ISBN 978-3-16-148410-0; a bill of 1,000,000 dollars
the score is 21-19 21-15 11-8; from 1939-1945 to 2001; bus 42 to 10115 Berlin; version 10.0.19045.2
meet @ 5pm; $12.99 @ the store; an @ sign on a key; a sign with the number 800 555 1234
"""


def main() -> None:
    files = sorted(SCENES.glob("*/*.parquet"))
    texts = list(dict.fromkeys(c for f in files for r in read_records(f) for c in r.captions))
    hard = [text.strip() for text in HARD.replace("\n", ";").split(";") if text.strip()]
    print(f"{len(texts)} captions of scenes, {len(hard)} that are hard")
    for name, rules in FILTERS.items():
        judge("warm", rules)
        start = time.perf_counter()
        wrong = judge_all(texts, rules)
        speed = len(texts) / (time.perf_counter() - start)
        print(f"{name}: {speed:,.0f} captions a second, {len(wrong)} of scenes found wrongly")
        if name == "both":
            continue
        found = judge_all(hard, rules)
        print(f"  of the hard ones {len(found)}: {', '.join(found)}")
    drawn = random.Random(0)
    for digits in (8, 10, 16):
        kinds: Counter[str] = Counter()
        for _ in range(NUMBERS):
            number = "".join(drawn.choice("0123456789") for _ in range(digits))
            verdict = judge(f"a sign with {number} on it", FILTERS["personal"])
            kinds.update(verdict.found if verdict else ())
        shares = {kind: f"{count / NUMBERS:.1%}" for kind, count in kinds.items()}
        print(f"random numbers of {digits} digits: {shares or 'none'}")


if __name__ == "__main__":
    main()
