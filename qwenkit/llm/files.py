"""What stands beside a model's weights: tokenizer, sampling defaults, template; of a folder or of a
GGUF file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwenkit.config import GenerationConfig
from qwenkit.errors import ConfigError
from qwenkit.io.gguf import GgufModel, is_gguf, read_gguf
from qwenkit.io.gguf_config import generation_of
from qwenkit.prompt.chat import ChatTemplate
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.prompt.tokenizer_gguf import end_ids_of_gguf, spec_of_gguf, template_of_gguf

TemplateLoader = Callable[[], ChatTemplate]


@dataclass(frozen=True)
class ModelFiles:
    """`weights` is what `load_model` takes. The template is made when it is first needed: a base
    model may have none and still complete.
    """

    weights: Path | GgufModel
    tokenizer: Tokenizer
    generation: GenerationConfig
    load_template: TemplateLoader


def read_files(
    path: Path, tokenizer: Tokenizer | None = None, generation: GenerationConfig | None = None
) -> ModelFiles:
    """Read what is not given from the model's folder or file; a GGUF file's header is read once.

    Errors: FormatError, ConfigError, TokenizerError.
    """
    if not is_gguf(path):
        own = tokenizer or Tokenizer.from_dir(path)
        generation = generation or GenerationConfig.from_dir(path)
        return ModelFiles(path, own, generation, lambda: ChatTemplate.from_dir(path, own))
    gguf = read_gguf(path)
    own = tokenizer or Tokenizer(spec_of_gguf(gguf.metadata, gguf.path))
    if generation is None:
        generation = generation_of(gguf.metadata, end_ids_of_gguf(gguf.metadata), str(path))
    found = template_of_gguf(gguf.metadata)
    return ModelFiles(gguf, own, generation, lambda: ChatTemplate.of(found, own, str(path)))


def check_vocabulary(
    name: str, tokenizer: Tokenizer, generation: GenerationConfig, rows: int
) -> None:
    """The tokenizer and the end ids must fit the model's rows. Errors: ConfigError."""
    size = tokenizer.vocab_size
    if size > rows:
        raise ConfigError(
            f"{name}: the tokenizer has {size} tokens, the model only {rows} rows.",
            "They are not of the same checkpoint; fetch it again.",
        )
    wild = [i for i in generation.eos_token_ids if i >= size]
    if wild:
        raise ConfigError(
            f"{name}: eos_token_id {wild[0]} is not a token; there are {size}.",
            "Mend generation_config.json or config.json.",
        )
