"""`quantization_config` of a config.json: how a published GPTQ or AWQ checkpoint is packed.

What is unsupported is refused with key, value and what is supported; keys that only tell how the
file was made (damp_percent, true_sequential …) are dropped.
Sources: GPTQ (Frantar 2022, arXiv 2210.17323) as AutoGPTQ and GPTQModel write it, AWQ (Lin 2023,
arXiv 2306.00978) as AutoAWQ writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from qwenkit.errors import ConfigError

METHODS = ("gptq", "awq")
_REMEDY = "Use a GPTQ, AWQ or unquantised checkpoint of the same model."


@dataclass(frozen=True)
class Quantization:
    """`group_size`: inputs that share a scale, 0 for whole rows. `zero_offset`: what is added to a
    stored zero (GPTQ's first format stores them less one).
    """

    method: str
    bits: int
    group_size: int
    zero_offset: int = 0

    @classmethod
    def from_dict(cls, values: Any, *, source: str = "config.json") -> Quantization:
        """Errors: ConfigError naming the key, its value, and what is supported."""
        where = f"{source}: quantization_config"
        if not isinstance(values, dict):
            raise ConfigError(f"{where} is {values!r:.80}; expected an object.", _REMEDY)

        def refuse(key: str, supported: str) -> NoReturn:
            found = values.get(key)
            raise ConfigError(f"{where}.{key} is {found!r:.80}; supported is {supported}.", _REMEDY)

        method = values.get("quant_method")
        if method not in METHODS:
            refuse("quant_method", " or ".join(METHODS))
        bits_key = "w_bit" if "w_bit" in values else "bits"
        group_key = "q_group_size" if "q_group_size" in values else "group_size"
        allowed = (4,) if method == "awq" else (4, 8)
        if type(values.get(bits_key)) is not int or values[bits_key] not in allowed:
            refuse(bits_key, " or ".join(map(str, allowed)))
        group = values.get(group_key)
        if type(group) is not int or not (group == -1 or 0 < group <= 1 << 20):
            refuse(group_key, "-1 or a positive number")
        for key, good in _AWQ.items() if method == "awq" else _GPTQ.items():
            value = values.get(key, good[0])
            value = value.lower() if isinstance(value, str) else value
            if value not in good:
                refuse(key, " or ".join(repr(each) for each in good if each is not None))
        first = method == "gptq" and values.get("checkpoint_format") != "gptq_v2"
        return cls(str(method), values[bits_key], max(group, 0), int(first))


# The values that mean the layout which is read here; the first is meant where the key is absent.
_GPTQ: dict[str, tuple[Any, ...]] = {
    "checkpoint_format": ("gptq", "gptq_v2", "", None),
    "desc_act": (False, True),
    "dynamic": (None, {}),
    "is_marlin_format": (False, None),
    "pack_dtype": ("int32", None),
    "sym": (True, False),
}
_AWQ: dict[str, tuple[Any, ...]] = {
    "version": ("gemm",),
    "zero_point": (True,),
}
