"""A smaller model with the same tokens that guesses what the large one says.

It has a cache of its own with the same blocks, so that it needs no accounts: what lies in a block
of the one lies in the same block of the other, shared beginnings too. Prompts are computed by both.
Each draft token is drawn by the rules of its request with the very random number that the large
model will use at this place. Where the two distributions are alike the two draws are mostly the
same token, and what the large model says does not depend on the draft at all (drafter-invariant
speculative decoding, Daliri 2024, arXiv 2408.07978).

What it has in its cache can only make a guess worse, never an answer. Adapters are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenkit.engine.blocks import BlockPool
from qwenkit.engine.kv_cache import KVCache
from qwenkit.engine.request import Request
from qwenkit.engine.runner import Runner
from qwenkit.engine.sampler import Sampler
from qwenkit.engine.scheduler import Plan, Span
from qwenkit.engine.speculate import Lookup, Proposer, Speculation
from qwenkit.errors import OptionError
from qwenkit.model.qwen import Qwen

LIKELY = 0.7
FIXED_ROWS = {"cpu": 2.0, "cuda": 64.0}
"""What a step costs beside its rows, in rows: of int4 on AVX2 (dev/LOG.md); for CUDA a guess."""
KINDS = ("lookup", "draft")


def check_speculation(speculate: str | None, draft_model: Qwen | None, vocab_size: int) -> None:
    """Errors: OptionError when the two do not go together, or with a model of so many tokens."""
    if speculate is not None and speculate not in KINDS:
        raise OptionError(f"speculate is {speculate!r}.", f"Use {' or '.join(KINDS)}.")
    if speculate == "draft" and draft_model is None:
        raise OptionError("speculate is draft, but there is no draft_model.", "Give draft_model.")
    if draft_model is None:
        return
    if speculate == "lookup":
        raise OptionError("speculate is lookup, but there is a draft_model.", "Leave one out.")
    if draft_model.config.vocab_size < vocab_size:
        raise OptionError(
            f"The draft model has {draft_model.config.vocab_size} rows for tokens, "
            f"of which there are {vocab_size}.",
            "Take a draft model with the same tokenizer.",
        )


def make_speculation(
    model: Qwen,
    draft_model: Qwen | None,
    sampler: Sampler,
    pool: BlockPool,
    *,
    max_sequences: int,
    max_blocks: int,
) -> Speculation:
    """By prompt lookup, or with a draft model where there is one."""
    fixed = FIXED_ROWS.get(model.device.type, FIXED_ROWS["cuda"])
    if draft_model is None:
        return Speculation(Lookup(), fixed)
    kind, device = draft_model.dtype, draft_model.device
    size = (pool.num_blocks, pool.block_size)
    cache = KVCache(draft_model.config, *size, dtype=kind, device=device)
    share = draft_model.config.num_active_parameters / model.config.num_active_parameters
    proposer = DraftModel(
        draft_model,
        cache,
        sampler,
        max_sequences=max_sequences,
        max_blocks=max_blocks,
        price=1 + share * (fixed + 1),
    )
    return Speculation(proposer, fixed)


def own_share(model: Qwen, draft_model: Qwen) -> float:
    """The model's part of a cache that both have blocks in."""
    own, draft = (m.config.kv_bytes_per_token(m.dtype.itemsize) for m in (model, draft_model))
    return own / (own + draft)


class DraftModel(Proposer):
    """`price`: what one token costs, in rows of the large model."""

    def __init__(
        self,
        model: Qwen,
        cache: KVCache,
        sampler: Sampler,
        *,
        max_sequences: int,
        max_blocks: int,
        price: float,
    ) -> None:
        self.runner = Runner(
            model, cache, max_sequences=max_sequences, max_blocks=max_blocks, adapters=False
        )
        self.sampler, self.price = sampler, price
        self.context_length = model.config.context_length
        self._computed: dict[str, int] = {}

    def follow(self, plan: Plan) -> None:
        """Compute the prompts of a plan here too."""
        for request in plan.paused:
            self.runner.release(request)
        prompts = []
        for span in plan.spans:
            known = self._computed.get(span.request.id, span.start)
            # A request that was paused may find one token more in its old blocks than was computed.
            start, end = min(known, span.start), span.start + span.count
            self._computed[span.request.id] = start
            if span.count > 1 and end <= self.context_length:
                prompts.append(Span(span.request, start, end - start, False))
                self._computed[span.request.id] = end
        if prompts:
            self.runner.forward(Plan(prompts))

    def find(self, request: Request, most: int) -> tuple[int, float]:
        return max(min(most, self.context_length - len(request.token_ids)), 0), LIKELY

    def propose(self, wanted: Sequence[tuple[Request, int]]) -> list[list[int]]:
        """Draw the tokens of all requests together, one after the other."""
        drafts: list[list[int]] = [[] for _ in wanted]
        before = [len(request.token_ids) for request, _ in wanted]
        alive = list(range(len(wanted)))
        try:
            while alive:
                requests = [wanted[i][0] for i in alive]
                draws = self.sampler.sample(requests, self.runner.forward(self._plan(requests)))
                for i, request, draw in zip(alive, requests, draws, strict=True):
                    if draw.token is not None:
                        drafts[i].append(draw.token)
                        request.token_ids.append(draw.token)
                alive = [
                    i
                    for i, draw in zip(alive, draws, strict=True)
                    if draw.token is not None and len(drafts[i]) < wanted[i][1]
                ]
        finally:
            for (request, _), count in zip(wanted, before, strict=True):
                del request.token_ids[count:]
                self.sampler.rewind(request)
        return drafts

    def _plan(self, requests: Sequence[Request]) -> Plan:
        """What each of them has got since it was last computed here."""
        plan = Plan()
        for request in requests:
            start, end = self._computed.get(request.id, 0), len(request.token_ids)
            plan.spans.append(Span(request, start, end - start, True))
            self._computed[request.id] = end
        return plan

    def learn(self, span: Span) -> None:
        """What is cached behind the tokens that passed is another text's."""
        end = span.start + 1 + span.passed
        self._computed[span.request.id] = min(self._computed.get(span.request.id, end), end)

    def forget(self, request: Request) -> None:
        self._computed.pop(request.id, None)
        self.runner.release(request)
