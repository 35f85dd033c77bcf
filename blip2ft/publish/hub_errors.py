"""What goes wrong between here and the hub, in a line that says what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

TOKENS = "https://huggingface.co/settings/tokens"
GO_ON = "run the same command again: it goes on with what the hub doesn't have yet"


def check_can_push(api: HfApi) -> None:
    """Raise ValueError where the hub may not be asked, or there is no token."""
    if is_offline_mode():
        raise ValueError(
            "HF_HUB_OFFLINE is set, so nothing can be sent; unset it, or see with --dry-run what "
            "would be"
        )
    if not (api.token or get_token()):
        raise ValueError(
            "there is no token of the hub: log in with `hf auth login`, or set HF_TOKEN, with a "
            f"token that may write, from {TOKENS}"
        )


@contextmanager
def explained_hub(api: HfApi, repo: str) -> Iterator[None]:
    """Turn what the client of the hub raises into a ValueError of one line."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise ValueError(
            f"{repo} has no such branch or pull request on the hub; leave --revision out for main"
        ) from error
    except (HfHubHTTPError, HTTPError, ValueError) as error:
        raise ValueError(_told(error, api, repo)) from error
    except (RuntimeError, ConnectionError, TimeoutError) as error:  # of an upload, by thread or xet
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError | HTTPError):
            reason = f"{_one_line(error)}: {_told(cause, api, repo)}"
        else:
            reason = f"the upload broke off ({_one_line(error)}); {GO_ON}"
        raise ValueError(reason) from error


def _told(error: BaseException, api: HfApi, repo: str) -> str:
    if isinstance(error, HfHubHTTPError):
        return _answered(error, repo)
    if isinstance(error, HTTPError):
        reason = _one_line(error) or type(error).__name__
        return f"the connection to {api.endpoint} broke off ({reason}); {GO_ON}"
    text = _one_line(error)
    if "LFS batch" in text:
        return f"the hub doesn't take the weights for {repo} ({text}); see your storage and plan"
    return text


def _answered(error: HfHubHTTPError, repo: str) -> str:
    """What an answer of the hub means."""
    status = error.response.status_code
    said = error.server_message or error.response.headers.get("X-Error-Message") or ""
    said = f" ({_one_line(said)})" if said else ""
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no repository {repo} that you may see{said}; check its name"
    if status == 401:
        return (
            f"the hub doesn't know your token{said}: log in again with `hf auth login`, or set "
            f"HF_TOKEN; tokens are at {TOKENS}"
        )
    if status == 403:
        return (
            f"your token may not write to {repo}{said}: take one that may, from {TOKENS}, push to "
            "a repository of your own, or try --pull-request"
        )
    if status == 412:
        return f"{repo} was changed meanwhile{said}; look at it, and run the same command again"
    if status in (402, 413, 507):
        return f"the hub has no room for this in {repo}{said}; see your storage and plan there"
    if status == 429:
        return f"the hub was asked too often{said}; wait some minutes, and {GO_ON}"
    if status >= 500:
        return f"the hub has a fault of its own, {status}{said}; wait some minutes, and {GO_ON}"
    if isinstance(error, BadRequestError) or status in (400, 409, 422):
        return f"the hub refuses this for {repo}, {status}{said or ': ' + _one_line(error)}"
    return f"the hub answered {status} for {repo}{said}; {GO_ON}"


def _one_line(error: object) -> str:
    text = str(error)
    text = re.sub(r"\(Request ID: [^)]*\)", "", text)
    return " ".join(text.split()).strip(" .:")
