"""Answers that are held to a grammar, as far as the engine knows: which tokens may come next.

A request may bring a `Matcher`, one object for itself alone, which somebody who knows the tokenizer
has made (`qwenkit.prompt.grammar`). It follows the tokens that the request has, lazily: what the
request got since it was last asked is accepted first. So pausing and trying a step again change
nothing, and tokens that were only proposed are taken back before anybody draws.

Precedence in a row of logits: penalties and logit_bias come first and the grammar last, so a bias
never lets a token through that the grammar forbids. `min_tokens` keeps the end away while another
token is possible; where the grammar has come to its end, it ends. Stop strings and stop ids end the
text as always, also in the middle of the grammar. Log-probabilities are the model's own, as if
there were no grammar. Legend: M sampling rows, V vocab, W words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwenkit.engine.request import Request
from qwenkit.errors import EngineError


def constrain(requests: Sequence[Request], logits: Tensor) -> dict[int, str]:
    """Forbid, in place, what the grammars forbid in logits (M, V). Rows that cannot go on, with
    what is wrong.
    """
    errors = {}
    for i, request in enumerate(requests):
        if request.matcher is not None:
            try:
                allowed = allowed_next(request, logits.shape[-1])
            except EngineError as error:
                errors[i] = str(error)
            else:
                forbidden = torch.from_numpy(~allowed).to(logits.device)
                logits[i].masked_fill_(forbidden, -torch.inf)
    return errors


def allowed_next(request: Request, vocab_size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each token may come next, (V); for requests with a matcher. Errors: EngineError."""
    assert request.matcher is not None
    for token in request.token_ids[request.num_prompt + request.num_matched :]:
        if not request.matcher.accept(token):
            raise EngineError(f"Token {token} does not fit the grammar.")
        request.num_matched += 1
    words = np.empty(-(-vocab_size // 32), np.int32)
    request.matcher.fill(words)
    bits = np.unpackbits(words.view(np.uint8), count=vocab_size, bitorder="little")
    allowed = bits.view(np.bool_)
    stops = list(request.params.stop_token_ids)
    if request.params.min_tokens > request.num_output and stops:
        ends = allowed[stops]
        allowed[stops] = False
        if not allowed.any():
            allowed[stops] = ends
    return allowed
