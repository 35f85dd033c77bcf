"""What must not leave this machine: its paths, the names of user and host, tokens and keys."""

import getpass
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token

# Folders right below the root under which people's files lie, on machines other than this one too.
ROOTS = "Users Volumes content data gpfs home kaggle lustre media mnt opt private root scratch srv "
ROOTS += "tmp var work workspace"
SYSTEM = {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "run", "sbin", "sys", "usr"}
# A path as it stands in a text: not the end of a web address, of a fraction or of a tag.
ABSOLUTE = re.compile(
    r"(?<![\w./<&-])(?:file://)?(/[^\s'\"`,;:()\[\]{}<>|?]+|[A-Za-z]:\\[^\s'\"]+)"
)
SECRETS = {
    "a token of the hub": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{35}|\bxox[abeprs]-[\w-]{10,}",
    "a token of GitHub": r"\bgh[opsur]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{20,}",
    "a signed token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[^\s/:@'\"]+:[^\s/@'\"]+@",
    "a signed address": r"[?&](?:X-Amz-\w+|sig|signature|token|access_token|api_key)=[^\s&'\"]{8,}",
}
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY|_KEY$")
# Names that say nothing of anyone, and are words of many texts.
GENERIC = {"root", "user", "users", "admin", "administrator", "ubuntu", "debian", "ec2-user"}
GENERIC |= {"runner", "jovyan", "docker", "nobody", "guest", "test", "localhost", "server", "home"}
USER, HOST = "the name of this machine's user", "the name of this machine"
PATH, OWN_PATH = "a path of a machine", "a path of this machine"
# Words that come with the base, of its language: a user's name among them is chance.
VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"}
VOCABULARIES |= {"spiece.model", "sentencepiece.bpe.model"}


def scrub(value: Any, stand_ins: Mapping[str, str]) -> Any:
    """A value of JSON or YAML with something else in place of every absolute path.

    stand_ins: what stands for some paths. Of others below the working folder the rest is kept, else
    the last name.
    """
    if isinstance(value, Mapping):
        return {key: scrub(one, stand_ins) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(one, stand_ins) for one in value]
    return scrub_text(value, stand_ins) if isinstance(value, str) else value


def scrub_text(text: str, stand_ins: Mapping[str, str]) -> str:
    """As `scrub`, of paths in a text, or of a text that is a path with spaces."""
    for path in sorted(stand_ins, key=len, reverse=True):  # the longer first: it may hold another
        text = re.sub(re.escape(path) + r"(?![\w.-])", stand_ins[path].replace("\\", r"\\"), text)
    if "\n" not in text and _is_local(text):
        return _shortened(text)
    return ABSOLUTE.sub(
        lambda found: _shortened(found[1]) if _is_local(found[1]) else found[0], text
    )


def leaks(
    name: str, text: str, known: Mapping[str, str], allowed: Collection[str]
) -> Iterator[str]:
    """What is private in a file's text, each with its line: "FILE, line 3: /home/.. (a path ..)".

    known: private strings of this machine and what they are (see `of_this_machine`), of which names
    and paths count where they stand alone. allowed: strings that may go out all the same. Of a
    secret only the first letters are told.
    """
    vocabulary = Path(name).name in VOCABULARIES
    patterns = [(what, re.compile(pattern)) for what, pattern in SECRETS.items()]
    for private, what in known.items():
        if vocabulary and what in (USER, HOST):
            continue
        pattern = re.escape(private)
        if what in (USER, HOST, OWN_PATH):
            pattern = rf"(?<![\w.]){pattern}(?!\w)"
        patterns.append((what, re.compile(pattern)))
    for number, line in enumerate(text.split("\n"), start=1):
        found = [(match[0], what) for what, pattern in patterns for match in pattern.finditer(line)]
        if not vocabulary:
            paths = (match[1] for match in ABSOLUTE.finditer(line))
            found += [(path, PATH) for path in paths if _is_local(path)]
        told: list[str] = []
        for string, what in found:
            if string in allowed or any(string in other for other in told):
                continue
            told.append(string)
            shown = string if what in (USER, HOST, PATH, OWN_PATH) else f"{string[:4]}…"
            yield f"{name}, line {number}: {shown} ({what})"


def of_this_machine(*more: str | Path, said: str = "") -> dict[str, str]:
    """Private strings of this machine, and what each is; more: paths beside home and work folder.

    Values of environment variables that are named like secrets are among them. said: what a person
    wants to be read; if the name of the user or the machine is in it, it isn't private.
    """
    known = {}
    for path in (Path.home(), Path.cwd(), Path(constants.HF_HOME), *map(Path, more)):
        full = os.path.abspath(path)
        if len(Path(full).parts) > 2:  # /root alone says nothing
            known[full] = OWN_PATH
    for name, what in ((_user(), USER), (socket.gethostname().partition(".")[0], HOST)):
        said_so = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)
        if len(name) > 2 and name.lower() not in GENERIC and not said_so:
            known[name] = what
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= 12 and not os.path.exists(value):
            known[value] = f"the value of ${name}"
    token = get_token()
    if token:
        known[token] = "your token of the hub"
    return known


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""


def _is_local(path: str) -> bool:
    if re.match(r"[A-Za-z]:\\", path):
        return True
    parts = Path(path).parts
    if len(parts) < 3 or parts[0] != "/":
        return False
    here = parts[1] not in SYSTEM and Path("/", parts[1]).is_dir()
    return here or parts[1] in ROOTS.split()


def _shortened(path: str) -> str:
    if "\\" in path:
        return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    here = Path.cwd()
    inside = Path(path).is_relative_to(here) and Path(path) != here
    return Path(path).relative_to(here).as_posix() if inside else Path(path).name
