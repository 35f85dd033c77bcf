"""Kill a small captioning run over and over, at any moment, and see that nothing changes.

python scripts/chaos.py --kills 20 --out runs/chaos

A run is trained once in peace. Another, of the same settings, is killed with SIGKILL, all of its
processes at once, and gone on with by `--resume`, as often as asked: while it starts, in the middle
of steps, while it saves, and at last while it ends. Then each line of both logs has to be the same
to the last digit, speeds aside, and so have scores, answers and the adapter's bytes. Else the exit
status is 1. Further words go to the recipe, such as `--model.name M`.
"""

import argparse
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "caption.py"
EVERY = 2  # steps from checkpoint to checkpoint
SPEEDS = ("images_per_second", "waiting")
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 50, 210), "grey": (128,) * 3}
SAVING_SECONDS = 0.05  # about as long as the embedded model's takes
PATIENCE = 600.0  # seconds for a run to do what is waited for


def main(argv: Sequence[str] | None = None) -> int:
    """Do as the words ask; 0 where both runs are the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="new folder for both runs")
    parser.add_argument("--kills", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--processes", type=int, default=1, help="that train together")
    parser.add_argument(
        "--damage", action="store_true", help="after some kills, damage the newest checkpoint"
    )
    options, words = parser.parse_known_args(argv)
    if options.out.exists():
        parser.error(f"{options.out} exists, and nothing is overwritten")
    out, rng = options.out.resolve(), random.Random(options.seed)
    steps = 3 * (EVERY + options.kills)
    make_photos(out / "photos")
    silence_java(out / "bin")
    words = [*map(str, settings_of(out / "photos", steps)), *words]

    def start(run: Path) -> psutil.Process:
        more = ["--output", str(run), *(["--resume"] if (run / "config.yaml").is_file() else [])]
        return begin([str(RECIPE), *words, *more], options.processes, run.with_suffix(".txt"))

    if options.processes == 1:
        import_all()
    whole, killed = out / "whole", out / "killed"
    began = time.monotonic()
    run = start(whole)
    wait_for(run, whole, lambda: last_step(whole) > 0)
    starting = time.monotonic() - began
    finish(run, whole)
    step_seconds = (time.monotonic() - began - starting) / steps
    print(f"in peace: {steps} steps, {time.monotonic() - began:.0f} s", flush=True)

    told: Counter[str] = Counter()
    for left in reversed(range(options.kills)):
        log = begun_log(killed)
        run = start(killed)
        before, moment = newest(killed), rng.choice(("start", "step", "step", "saving", "saving"))
        goal = before + rng.randint(0, 3 * EVERY)
        if left < options.kills // 10:
            moment, goal = "end", steps
        elif goal + EVERY > steps:
            moment = "start"
        if moment != "start":
            wait_for(run, killed, lambda log=log: begun_log(killed) != log)  # type: ignore[misc]
            wait_for(run, killed, lambda goal=goal: last_step(killed) >= goal)  # type: ignore[misc]
        if moment == "saving":
            wait_for(run, killed, lambda: bool(half_written(killed)))
        pauses = {"step": step_seconds, "saving": SAVING_SECONDS}
        time.sleep(rng.uniform(0, pauses.get(moment, starting)))
        told["kills of a live run"] += kill(run)
        reached, goes_on = last_step(killed), newest(killed)
        told[f"kills at: {moment}"] += 1
        told["steps done again"] += max(0, reached - goes_on)
        told["checkpoints half written"] += len(half_written(killed))
        line = f"kill {options.kills - left}: {moment}, at step {reached}, goes on from {goes_on}"
        if options.damage and rng.random() < 0.3 and (what := damage(killed, rng)):
            told["checkpoints damaged"] += 1
            line += f"; {what}"
        print(line, flush=True)
    finish(start(killed), killed)

    for name in sorted(told):
        print(f"{name:26} {told[name]:6}")
    differences = compare(whole, killed)
    for difference in differences:
        print(f"differs: {difference}")
    same = f"{steps} lines of the log, scores, answers and adapter are the same, bit for bit"
    print(f"{options.kills} kills: " + ("NOT THE SAME" if differences else same))
    return 1 if differences else 0


def make_photos(folder: Path) -> None:
    """Twelve images of two colours for training and four for validation, with captions."""
    folder.mkdir(parents=True)
    pairs = [(one, other) for one in COLOURS for other in COLOURS]
    for split, some in (("train", pairs[:12]), ("validation", pairs[12:])):
        lines = ["image,caption"]
        for one, other in some:
            image = Image.new("RGB", (64, 64), COLOURS[one])
            image.paste(COLOURS[other], (32, 0, 64, 64))
            image.save(folder / f"{one}-{other}.png")
            lines.append(f"{one}-{other}.png,{one} left of {other}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


def settings_of(photos: Path, steps: int) -> list[object]:
    """The recipe's words: the embedded model, with all that draws at random, for `steps` steps."""
    words: list[object] = ["--model.name", ROOT / "data" / "tiny-blip2"]
    for split in ("train", "validation"):
        words += [f"--data.{split}.source", photos / f"{split}.csv"]
    words += ["--data.workers", 1, "--train.max_steps", steps, "--train.epochs", steps]
    words += ["--train.batch_size", 4, "--train.micro_batch_size", 2, "--train.log_every", 1]
    words += ["--train.checkpoint_every", EVERY, "--train.evaluate_every", 3 * EVERY]
    words += ["--train.preflight", "false", "--optimizer.warmup_steps", 2]
    return [*words, "--generation.num_beams", 1, "--generation.max_new_tokens", 4]


def silence_java(folder: Path) -> None:
    """For METEOR and SPICE, which would take many seconds each, a Java that fails."""
    folder.mkdir()
    (folder / "java").write_text("#!/bin/sh\nexit 1\n")
    (folder / "java").chmod(0o755)
    os.environ |= {"PATH": f"{folder}:{os.environ['PATH']}", "JAVA_HOME": ""}


def import_all() -> None:
    """Import what a run does, once for all that are forked from here."""
    import peft  # noqa: F401
    import transformers  # noqa: F401

    import blip2ft.models.load
    import blip2ft.training.loop  # noqa: F401


def begin(argv: list[str], processes: int, log: Path) -> psutil.Process:
    """A run of the recipe; `log` gets what it says, at the end of what was said before."""
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(processes), *argv]
        with log.open("a") as file:
            run = subprocess.Popen(command, stdout=file, stderr=file)
        return psutil.Process(run.pid)
    # a fork: each life would spend most of its time with imports
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return psutil.Process(pid)
    status = 70
    try:
        with log.open("a") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:  # told here: the end below leaves no time for it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def kill(run: psutil.Process) -> bool:
    """SIGKILL to a run and all that it started, stopped first, so that none starts another.

    Whether it came before the run's own end.
    """
    for action in ("suspend", "kill"):
        for process in [run, *run.children(recursive=True)]:
            try:
                getattr(process, action)()
            except psutil.NoSuchProcess:
                continue
    return run.wait() == -signal.SIGKILL


def finish(run: psutil.Process, folder: Path) -> None:
    """Wait for a run's own end; what it said, as an error, if that isn't a good one."""
    status = run.wait()
    if status != 0:
        said = folder.with_suffix(".txt").read_text()[-3000:]
        raise SystemExit(f"{said}\nthe run ended with exit status {status}, and shouldn't have")


def wait_for(run: psutil.Process, folder: Path, happened: Callable[[], bool]) -> None:
    """Look until something has happened, or the run has ended well, which its adapter tells."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if run.status() == psutil.STATUS_ZOMBIE:
            if not (folder / "adapter").exists():
                finish(run, folder)
            return
        if time.monotonic() > deadline:
            kill(run)
            raise SystemExit(f"the run hangs; {folder.with_suffix('.txt')} has what it said")
        time.sleep(0.001)


def damage(run: Path, rng: random.Random) -> str:
    """Flip a bit of the newest checkpoint, cut it or remove a file, where there is one before."""
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    files = sorted(checkpoints[-1].iterdir()) if len(checkpoints) > 1 else []
    if len(files) < 3:  # it was damaged before
        return ""
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    how = rng.choice(("a bit flipped", "cut", "removed"))
    if how == "removed":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // rng.randint(2, 9)])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return f"{checkpoints[-1].name}/{path.name} {how}"


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs between two runs, in words."""
    found = []
    for name in ("log.jsonl", "metrics.jsonl"):
        one, other = (rows(run / name) for run in (whole, killed))
        if len(one) != len(other):
            found.append(f"{name}: {len(one)} lines in peace, {len(other)} with kills")
        pairs = zip(one, other, strict=False)
        found += [f"{name}: {a} in peace, {b} with kills" for a, b in pairs if a != b][:3]
    for folder in ("adapter", "predictions"):
        names = [{path.name for path in (run / folder).iterdir()} for run in (whole, killed)]
        found += [f"{folder}/{name}: only in one" for name in sorted(names[0] ^ names[1])]
        for name in sorted(names[0] & names[1]):
            if (whole / folder / name).read_bytes() != (killed / folder / name).read_bytes():
                found.append(f"{folder}/{name}: other bytes")
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a file of JSON lines, without speeds."""
    if not path.is_file():
        return []
    *lines, _ = path.read_text().split("\n")
    return [{k: v for k, v in json.loads(line).items() if k not in SPEEDS} for line in lines]


def begun_log(run: Path) -> int:
    """Which file the log is: a run that goes on writes it anew, without what it will do again."""
    path = run / "log.jsonl"
    return path.stat().st_ino if path.exists() else 0


def last_step(run: Path) -> int:
    """The last step that a run has logged."""
    found = rows(run / "log.jsonl")
    return found[-1]["step"] if found else 0


def half_written(run: Path) -> list[Path]:
    """Checkpoints that are being written, or were when the run was killed."""
    return list((run / "checkpoints").glob(".partial-*"))


def newest(run: Path) -> int:
    """The step of the newest checkpoint, damaged or not."""
    found = sorted((run / "checkpoints").glob("step-*"))
    return int(found[-1].name.removeprefix("step-")) if found else 0


if __name__ == "__main__":
    sys.exit(main())
