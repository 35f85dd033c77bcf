"""`blip2ft push`."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from blip2ft.commands.card import add_card_options, read_answers
from blip2ft.commands.options import command
from blip2ft.quiet import quiet_libraries

USES = {
    "caption": "blip2ft caption IMAGE --model {}",
    "vqa": 'blip2ft ask IMAGE "QUESTION" --model {}',
    "retrieval": "blip2ft index FOLDER --out INDEX --model {}",
}


def add_push(commands: Any) -> None:
    parser = command(
        commands, "push", "Put a run on the hub: weights, card, settings, scores.", _push
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the --output of a run")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="made where it isn't")
    parser.add_argument(
        "--merged",
        action="store_true",
        help="the whole model, as blip2ft export makes it; default: the adapter, which needs its "
        "base to be on the hub",
    )
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="with --merged")
    parser.add_argument("--base-repo", metavar="ID", help="the base on the hub, if it's a folder")
    parser.add_argument("--private", action="store_true", help="a new repo is seen by you alone")
    parser.add_argument("--revision", metavar="BRANCH", help="made where it isn't (main)")
    parser.add_argument("--pull-request", action="store_true", help="to main, for others to merge")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files that another run or another hand put there; nothing is ever deleted",
    )
    add_card_options(parser)
    parser.add_argument(
        "--card", type=Path, metavar="FILE.md", help="a card that you wrote, instead of a made one"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=8,
        metavar="N",
        help="answers of the evaluation of its result; 0: none (8)",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="TEXT",
        help="let this text go out, though it looks private",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be sent, without the network"
    )


def _push(arguments: argparse.Namespace) -> int:
    if arguments.samples < 0:
        raise ValueError(f"--samples is {arguments.samples}: 0 or more are allowed")
    if arguments.card and (arguments.about or arguments.say or arguments.by):
        raise ValueError(
            "--card is taken as it is, so --about, --say and --by add nothing to it; leave them "
            "out, or leave out --card"
        )
    if arguments.card and not arguments.card.is_file():
        raise ValueError(f"there is no card at {arguments.card}; leave --card out to have one made")
    said = read_answers(arguments)
    quiet_libraries()
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    from blip2ft.features.size import told_size
    from blip2ft.finetuned import adapter_folder
    from blip2ft.models.adapters import read_description
    from blip2ft.publish.hub_errors import check_can_push
    from blip2ft.publish.outgoing import check_nothing_private, mark_of, outgoing
    from blip2ft.publish.send import Target, check_overwriting, look, send

    run, api = arguments.run_folder, HfApi()
    target = Target(
        arguments.repo,
        arguments.revision,
        arguments.pull_request,
        arguments.private,
        arguments.overwrite,
    )
    target.check()
    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.getLogger("huggingface_hub.hf_api").setLevel(logging.ERROR)  # told in our words
    if not arguments.dry_run:
        check_can_push(api)
        look(api, target, set())  # before a model is merged for minutes
    options = {"merged": arguments.merged, "dtype": arguments.dtype, "samples": arguments.samples}
    options |= {"base_repo": arguments.base_repo, "look_up": not arguments.dry_run}
    options |= {"repo": target.repo, "said": said, "fields": arguments.by}
    with outgoing(run, card=arguments.card, **options) as going:
        check_nothing_private(going, {*arguments.allow, *target.repo.split("/")})
        sizes = going.sizes()
        branch = "a pull request" if target.pull_request else target.revision or "main"
        print(f"{run} -> {api.endpoint}/{target.repo} ({branch})")
        for name, size in sizes.items():
            print(f"{told_size(size):>10}  {name}")
        print(f"{told_size(sum(sizes.values())):>10}  in {len(sizes)} files")
        if going.lacking:
            print(
                "the card lacks what only you know (--say or --about, see blip2ft card): "
                f"{', '.join(going.lacking)}"
            )
        if arguments.dry_run:
            print("nothing was sent: this is a dry run")
            return 0
        mark = mark_of(run)
        remote = look(api, target, set(sizes))
        others = check_overwriting(target, remote, set(sizes), mark)
        if others:
            print(f"replaces what others put there: {', '.join(others)}")
        sys.stdout.flush()
        task = read_description(adapter_folder(run))["task"]
        title = f"{'Model' if arguments.merged else 'Adapter'} for {task}"
        done = send(api, target, remote, going.files, title, mark)
    if done is None:
        print(f"nothing new to send: {target.repo} has all of it")
    else:
        print(done.pr_url or done.commit_url)
    if not target.pull_request:
        revision = f" --revision {target.revision}" if target.revision else ""
        print(f"use it: {USES[task].format(target.repo)}{revision}")
    return 0
