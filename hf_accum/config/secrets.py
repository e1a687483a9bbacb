"""Tokens and passwords in texts: found, and taken out before anybody sees them."""

import os
import re

_SECRETS = re.compile(
    r"""
      (?<=://) [^/\s?\#]+ (?=@)                                   # user:password@ or token@ in an address
    | \b (?: hf_ | api_org_ ) [A-Za-z0-9]{20,}                     # Hugging Face
    | \b sk-[\w-]{20,}                                            # OpenAI, Anthropic
    | \b (?: gh[a-z]_ | github_pat_ | glpat- ) [\w-]{20,}          # GitHub, GitLab
    | \b AKIA[A-Z0-9]{16}\b                                        # Amazon
    | (?<= [?&;] ) (?: [\w-]* (?: token | secret | password | passwd | signature | credential ) | sig
      | (?: [\w-]* (?: api | access | account ) [_-]? )? key ) = [^&;\s'"]+    # of an address's query
    | (?<= bearer\s ) [\w.~+/=-]{8,}
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SECRET_NAMES = re.compile(r"(TOKEN|API_KEY|SECRET|SECRET_KEY|SECRET_ACCESS_KEY|PASSWORD)$")
_SHORTEST = 8  # characters: of a variable's value, so that no ordinary word is taken for one


def holds_secret(text: str) -> bool:
    """Whether a text holds a token, a password in an address, or a secret of the environment (HF_TOKEN, say)."""
    return without_secrets(text) != text


def without_secrets(text: str) -> str:
    """A text with *** in the place of each secret."""
    for secret in _of_environment():
        text = text.replace(secret, "***")
    return _SECRETS.sub("***", text)


def _of_environment() -> list[str]:
    values = {value for name, value in os.environ.items() if _SECRET_NAMES.search(name.upper())}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)
