"""Fill-in-the-middle prompts of the Coder models: what to put before the hole, and where to stop.

The format is the published one: prefix, suffix, then the middle is generated. A repository prompt
lists whole files first. The file contents are plain text: special tokens inside them stay text.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenkit.errors import RequestError
from qwenkit.prompt.tokenizer import Tokenizer

STOP_TOKENS = (
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<|endoftext|>",
    "<|im_end|>",
)
"""A completion that reaches one of these has left the hole (the list of the Coder examples)."""


def fim_stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end the middle: those of `STOP_TOKENS` that the tokenizer has."""
    return tuple(
        tokenizer.special_ids[token] for token in STOP_TOKENS if token in tokenizer.special_ids
    )


def fim_ids(
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    *,
    path: str | None = None,
    repo: str | None = None,
    files: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Ids of a fill-in-the-middle prompt.

    Args:
        prefix, suffix: the text before and after the hole.
        path: name of the file with the hole; required with `repo`.
        repo: name of the repository; makes it a repository prompt.
        files: other files of the repository, (path, content), in the order to show them.

    Errors: RequestError when the tokenizer lacks the tokens, or `repo` and `path` are not given
        together.
    """
    needed = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    if repo is not None or files or path is not None:
        if repo is None or path is None:
            raise RequestError(
                "A repository prompt needs both repo and path.",
                "Give both, or neither.",
                param="repo",
            )
        needed += ["<|repo_name|>", "<|file_sep|>"]
    missing = [token for token in needed if token not in tokenizer.special_ids]
    if missing:
        raise RequestError(
            f"This model's tokenizer has no {missing[0]}.",
            "Use a model trained to fill in the middle.",
        )
    special, ids = tokenizer.special_ids, []
    if repo is not None:
        ids += [special["<|repo_name|>"], *tokenizer.encode(f"{repo}\n")]
        for name, content in files:
            ids += [special["<|file_sep|>"], *tokenizer.encode(f"{name}\n{content}\n")]
        ids += [special["<|file_sep|>"], *tokenizer.encode(f"{path}\n")]
    ids += [special["<|fim_prefix|>"], *tokenizer.encode(prefix)]
    ids += [special["<|fim_suffix|>"], *tokenizer.encode(suffix), special["<|fim_middle|>"]]
    return ids
