"""One process that is present, and does what it is told: python present.py RANK WORLD FILE GRACE.

FILE is how the others learn where the first one listens. Commands come line by line: "die", "fail",
"fail WORDS", "stop", "work" (heeding nobody), "end", or "wait" for another to be lost.
"""

import os
import signal
import sys
import time
from pathlib import Path

from blip2ft.training import presence


def main(rank: int, world: int, told: Path, grace: float) -> None:
    presence.GRACE = grace

    def share(own: list[str]) -> list[str]:
        if rank == 0:
            told.with_suffix(".new").write_text("\n".join(own))
            told.with_suffix(".new").rename(told)
        while not told.exists():
            time.sleep(0.01)
        return told.read_text().split("\n")

    presence.attend(rank, world, share)
    print("present", flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif command == "fail":
            presence.fail()
            sys.exit(2)
        elif command.startswith("fail "):
            if not presence.told_by_first(command):
                print(command, file=sys.stderr)
            presence.fail(command)
            sys.exit(2)
        elif command == "stop":
            presence.stop()
            sys.exit(143)
        elif command == "work":
            time.sleep(60)
        elif command == "end":
            return
        elif command == "wait" and presence.lost_another(wait=30):
            sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
