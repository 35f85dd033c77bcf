"""Files to a repository on the hub, in one commit that neither deletes nor silently overwrites."""

import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from blip2ft.publish.hub_errors import explained_hub

logger = logging.getLogger(__name__)

MARK = re.compile(r"\(blip2ft push ([0-9a-f]{12})\)")
COMMIT = re.compile(r"[0-9a-f]{40}")
# What git takes for the name of a branch, roughly.
BRANCH = re.compile(r"(?!-|/)(?!.*(\.\.|//|@\{|\.lock$|[./]$))[^\s~^:?*\[\\\x00-\x1f]+")
# Of these a loader takes what it finds, ours or not.
OF_AN_ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "trained.safetensors"}
OF_A_MODEL = {"config.json", "model.safetensors", "model.safetensors.index.json"}


@dataclass(frozen=True)
class Target:
    """Where files go to: OWNER/NAME, on a branch, or as a pull request to main.

    private: for a repository that is made; overwrite: also what others, or another run, put there.
    """

    repo: str
    revision: str | None = None
    pull_request: bool = False
    private: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Raise ValueError for a name or a branch that can't be, before the hub is asked."""
        try:
            validate_repo_id(self.repo)
        except HFValidationError as error:
            raise ValueError(
                f"--repo is {self.repo!r}, which can be no repository: letters, digits, -, _ and . "
                "are allowed, as in anna/birds"
            ) from error
        if "/" not in self.repo:
            raise ValueError(
                f"--repo is {self.repo!r} and lacks its owner; give OWNER/NAME, such as "
                f"YOU/{self.repo} (hf auth whoami says who you are)"
            )
        if self.revision is None:
            return
        if self.pull_request:
            raise ValueError("a pull request goes to main; leave out --revision or --pull-request")
        if COMMIT.fullmatch(self.revision):
            raise ValueError(f"--revision {self.revision} is a commit; give the name of a branch")
        if not BRANCH.fullmatch(self.revision):
            raise ValueError(
                f"--revision is {self.revision!r}, which can be no branch; give one such as main"
            )


@dataclass(frozen=True)
class Remote:
    """A repository as it is: its last commit, and the files that a push may meet, by path.

    fresh: whether the target is a branch beside main without a commit of its own, since it isn't
    there yet or was only made; then these are main's.
    """

    head: str | None
    fresh: bool
    files: dict[str, RepoFile]


def look(api: HfApi, target: Target, names: set[str]) -> Remote | None:
    """What of `names` is in the repository, on main where its branch isn't yet; None: no such.

    Raises ValueError for what keeps the hub from answering, where there is no repository for a pull
    request, and for one that is public and was to be private.
    """
    with explained_hub(api, target.repo):
        try:
            main = api.model_info(target.repo)
        except RepositoryNotFoundError:
            main = None
    if main is None and target.pull_request:
        raise ValueError(
            f"the hub has no repository {target.repo} that you may see, so there is nothing to "
            "request a pull of; leave out --pull-request to make it"
        )
    if main is None:
        return None
    if target.private and not main.private:
        raise ValueError(
            f"{target.repo} is there already and is public, and --private is for a new one; make "
            "it private in its settings on the hub, or leave --private out"
        )
    info, fresh = main, False
    with explained_hub(api, target.repo):
        if target.revision is not None and target.revision != "main":
            can_be_made = not target.revision.startswith("refs/")
            try:
                info = api.model_info(target.repo, revision=target.revision)
            except RevisionNotFoundError:
                if not can_be_made:
                    raise
            fresh = can_be_made and info.sha == main.sha
        paths = sorted(names | OF_AN_ADAPTER | OF_A_MODEL)
        found = api.get_paths_info(target.repo, paths, expand=True, revision=info.sha)
    files = {one.path: one for one in found if isinstance(one, RepoFile)}
    return Remote(info.sha, fresh, files)


def check_overwriting(
    target: Target, remote: Remote | None, names: set[str], mark: str
) -> list[str]:
    """The files there, of another run or another hand, that the push replaces.

    None on a fresh branch: what it replaces there stays on main.

    Raises ValueError for those unless `target` allows it, and for weights there that would be
    loaded along with these.
    """
    if remote is None:
        return []
    along = sorted((OF_AN_ADAPTER | OF_A_MODEL) & remote.files.keys() - names)
    if along:
        raise ValueError(
            f"{target.repo} has {', '.join(along)}, which this push doesn't bring and which would "
            "be loaded along with it; nothing is ever deleted there: push to another --repo, or "
            "delete it on the hub"
        )
    if remote.fresh:
        return []
    there = sorted(names & remote.files.keys())
    others = [name for name in there if _mark(remote.files[name]) != mark]
    if others and not target.overwrite and not target.pull_request:
        raise ValueError(
            f"{target.repo} has {', '.join(others)}, which this run didn't put there or which was "
            "changed since: see --pull-request, or replace it with --overwrite (the former commit "
            "stays on the hub), or push to another --repo or --revision"
        )
    return others


def send(
    api: HfApi,
    target: Target,
    remote: Remote | None,
    files: Mapping[str, Path | bytes],
    title: str,
    mark: str,
) -> CommitInfo | None:
    """Commit `files`, in a repository and a branch that are made where there are none.

    What the hub has of large files isn't sent again, so that after an error the same call goes on.
    title: of the commit, to which the run's mark is added. None where there is nothing to commit.

    Raises ValueError for whatever the hub refuses, and for a connection that breaks.
    """
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()
    ]
    with explained_hub(api, target.repo), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        head = remote.head if remote else None
        if remote is None:
            api.create_repo(target.repo, private=target.private or None, exist_ok=True)
            head = api.model_info(target.repo).sha
        if target.revision is not None and (remote is None or remote.fresh):
            api.create_branch(target.repo, branch=target.revision, exist_ok=True)
        done = api.create_commit(
            target.repo,
            operations,
            commit_message=f"{title} (blip2ft push {mark})",
            revision=target.revision,
            create_pr=target.pull_request,
            parent_commit=head,
        )
    for warning in told:
        message = " ".join(str(warning.message).split())
        if "README.md" in message:  # others are between the client and its libraries
            logger.warning("%s", message)
    return None if done.oid == head else done


def _mark(file: RepoFile) -> str | None:
    found = MARK.search(file.last_commit.title) if file.last_commit else None
    return found[1] if found else None
