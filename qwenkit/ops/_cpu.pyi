from collections.abc import Sequence

class Weight:
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def lanes() -> int: ...
def threads() -> int: ...
def set_threads(count: int) -> None: ...
def rms_norm(
    x: int, weight: int, out: int, rows: int, cols: int, eps: float, dtype: str
) -> None: ...
def rope(
    x: int, cos: int, sin: int, out: int, tokens: int, heads: int, head_dim: int, dtype: str
) -> None: ...
def swiglu(gate: int, up: int, out: int, count: int, dtype: str) -> None: ...
def store_kv(
    k: int,
    v: int,
    k_cache: int,
    v_cache: int,
    slots: int,
    tokens: int,
    heads: int,
    head_dim: int,
    dtype: str,
    cache_dtype: str,
) -> None: ...
def paged_attention(
    q: int,
    k_cache: int,
    v_cache: int,
    out: int,
    tables: int,
    context_lens: int,
    cu_seqlens: int,
    sizes: list[int],
    scale: float,
    dtype: str,
    cache_dtype: str,
) -> None: ...
def dense_weight(rows: int, cols: int, data: int, dtype: str) -> Weight: ...
def packed_weight(
    rows: int,
    cols: int,
    lanes: int,
    bits: int,
    halves: bool,
    group: int,
    kinds: tuple[int, int],
    addresses: list[int],
) -> Weight: ...
def linear(weight: Weight, x: int, out: int, rows: int, dtype: str, bias: int) -> None: ...
def packed_rows(weight: Weight, rows: int, count: int, out: int, dtype: str) -> None: ...
def argmax(x: int, stride: int, rows: int, cols: int) -> tuple[list[int], list[float]]: ...
def top(x: int, stride: int, rows: int, cols: int, most: int, places: int, values: int) -> None: ...
def interleave(codes: int, out: int, rows: int, cols: int, bits: int) -> None: ...

class Layer: ...

def make_layer(
    weights: Sequence[Weight], biases: Sequence[int], norm1: int, norm2: int, eps: float
) -> Layer: ...
def run_layers(
    layers: Sequence[Layer],
    addresses: Sequence[int],
    caches: Sequence[tuple[int, int, int]],
    tokens: int,
    sizes: Sequence[int],
    scale: float,
    dtype: str,
    cache_dtype: str,
) -> None: ...
