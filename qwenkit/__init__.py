"""qwenkit: one definition of the Qwen2.5 / Qwen2-VL open models, from checkpoint file to answer.

`from qwenkit import LLM` is the front door. The name is handed out lazily, so that `import qwenkit`
stays cheap: it imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenkit.llm import LLM

__all__ = ["LLM", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from qwenkit.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
