"""generation_config.json: the sampling defaults and end tokens that a checkpoint asks for."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenkit.config.fields import typed
from qwenkit.config.model import ModelConfig
from qwenkit.errors import ConfigError
from qwenkit.utils import read_json


@dataclass(frozen=True)
class GenerationConfig:
    """What generation_config.json asks for; the caller's own values come first."""

    eos_token_ids: tuple[int, ...] = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None

    @property
    def usual_temperature(self) -> float:
        """That of a caller who gives none; 0 is greedy."""
        return self.temperature if self.do_sample else 0.0

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> GenerationConfig:
        """Read `path`/generation_config.json; without that file, config.json's eos and greedy
        decoding.

        Errors: FormatError (not JSON), ConfigError naming key and value.
        """
        file = Path(path) / "generation_config.json"
        fallback = ModelConfig.from_dir(path).eos_token_ids
        if not os.path.lexists(file):  # a link to nothing is a fault, not an absence
            return cls(eos_token_ids=fallback)
        values = read_json(file)
        if not isinstance(values, dict):
            raise ConfigError(f"{file} is not a JSON object.", "Fetch the model again.")
        return cls.from_dict(values, fallback, source=str(file))

    @classmethod
    def from_dict(
        cls, values: dict[str, Any], fallback: tuple[int, ...], *, source: str
    ) -> GenerationConfig:
        """Build from the keys of a generation_config.json; `fallback` are the end ids without any
        there. Errors: ConfigError naming key and value.
        """
        known: dict[str, Any] = {}
        for spec in dataclasses.fields(cls)[1:]:
            value = values.get(spec.name)
            if value is not None:
                known[spec.name] = typed(spec.name, value, str(spec.type), source)
        eos = values.get("eos_token_id")
        ids = tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,))
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ConfigError(f"{source}: eos_token_id is {eos!r}; token ids are integers from 0.")
        result = cls(eos_token_ids=ids or fallback, **known)
        ranges = {
            "temperature": 0 <= result.temperature < math.inf,
            "top_p": 0 < result.top_p <= 1,
            "top_k": result.top_k >= 0,
            "repetition_penalty": 0 < result.repetition_penalty < math.inf,
        }
        for key, good in ranges.items():
            if not good:
                value = getattr(result, key)
                raise ConfigError(
                    f"{source}: {key} is {value!r}, which is out of range.", "Mend the file."
                )
        return result
