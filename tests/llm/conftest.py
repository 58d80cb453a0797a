"""A byte tokenizer written as a checkpoint's files, a random model beside it, and a model that
follows a script.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from qwenkit.config import GenerationConfig, ModelConfig
from qwenkit.llm import LLM
from qwenkit.model.batch import Batch
from qwenkit.model.load import init_model, save_model
from qwenkit.prompt.chat import ChatTemplate
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.prompt.tokenizer_files import byte_alphabet

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|file_sep|>",
)
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = ModelConfig(
    vocab_size=272,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.3,
    eos_token_id=256,
    torch_dtype="float32",
)
EOS, IM_END = 256, 258


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory laid out like a published model, with random weights."""
    path = tmp_path_factory.mktemp("byte-model")
    (path / "vocab.json").write_text(json.dumps({c: b for b, c in byte_alphabet().items()}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    decoder = {
        str(256 + i): {"content": token, "special": token in SPECIAL}
        for i, token in enumerate(SPECIAL + PLAIN)
    }
    config = {"added_tokens_decoder": decoder, "chat_template": TEMPLATE, "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    save_model(init_model(CONFIG, seed=3), path)
    return path


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_dir(checkpoint)


class Script:
    """Stands in for a model: `reply(prompt text)` says what it writes; then it ends the turn, again
    and again.

    It tells sequences apart by their first cache block, and a prompt's tokens, in pieces of any
    size, by the first logits that are asked for. NAN in a reply makes logits that are not finite.
    """

    device, dtype = torch.device("cpu"), torch.float32
    fused = False

    def __init__(
        self, tokenizer: Tokenizer, reply: Callable[[str], str], delay: float = 0.0
    ) -> None:
        self.config, self.tokenizer, self.reply, self.delay = CONFIG, tokenizer, reply, delay
        self.prompts: dict[int, list[int]] = {}
        self.answering: set[int] = set()
        self.widest = 0
        self.last_prompt: list[int] = []

    def __call__(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        time.sleep(self.delay)
        assert batch.kv is not None
        bounds, logits = (
            batch.cu_seqlens.tolist(),
            torch.zeros(len(batch.input_ids), CONFIG.vocab_size),
        )
        self.widest = max(self.widest, len(bounds) - 1)
        asked = set(range(bounds[-1])) if rows is None else set(rows.tolist())
        for s, end in enumerate(batch.kv.context_lens.tolist()):
            ids = batch.input_ids[bounds[s] : bounds[s + 1]].tolist()
            block = int(batch.kv.block_tables[s, 0])
            if end == len(ids):
                self.prompts[block] = []
                self.answering.discard(block)
            if block not in self.answering:
                self.prompts[block] += ids
                self.last_prompt = self.prompts[block]
            if bounds[s + 1] - 1 in asked:
                self.answering.add(block)
            prompt = self.prompts[block]
            text = self.reply(self.tokenizer.decode(prompt, skip_special=False))
            script = self.tokenizer.encode(text.replace("NAN", "\0"), allow_special=True)
            at = end - len(prompt)
            token = script[at] if at < len(script) else IM_END
            logits[bounds[s + 1] - 1, token] = torch.nan if token == 0 else 20.0
        return logits if rows is None else logits[rows]


@pytest.fixture
def scripted(checkpoint: Path, tokenizer: Tokenizer) -> Iterator[Callable[..., SimpleNamespace]]:
    """scripted(reply, delay=…, **options) → .llm and .model; reply is a text or a function of the
    prompt.
    """
    made: list[LLM] = []

    def make(
        reply: str | Callable[[str], str],
        delay: float = 0.0,
        generation: GenerationConfig | None = None,
        **options: int,
    ) -> SimpleNamespace:
        model = Script(tokenizer, reply if callable(reply) else lambda _: reply, delay)
        llm = LLM(
            model,  # type: ignore[arg-type]
            tokenizer=tokenizer,
            template=ChatTemplate.from_dir(checkpoint, tokenizer),
            generation=generation or GenerationConfig((EOS,)),
            prefix_cache=False,  # the script must see every token of its prompt
            **options,  # type: ignore[arg-type]
        )
        made.append(llm)
        return SimpleNamespace(llm=llm, model=model)

    yield make
    for llm in made:
        llm.close()
        pool = llm._driver.engine.scheduler.pool
        assert pool.num_free == pool.num_blocks, "blocks were lost"


@pytest.fixture
def llm(checkpoint: Path) -> Iterator[LLM]:
    with LLM(checkpoint) as llm:
        yield llm
