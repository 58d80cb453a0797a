// The kernels' interface. Every instruction set fills one table of functions in a namespace of its own.
//
// Kernel files include nothing but <cstdint> and <cstddef> (and the compiler's intrinsics): an inline function of the
// standard library compiled here with AVX flags could be the copy that the linker keeps for the whole module.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwenkit {

enum class Dtype : int { float32 = 0, bfloat16 = 1, int8 = 2 };  // int8: only of caches, see cache.inc

// How a packed weight's scales are stored; see qlinear.inc.
enum class Scales : int { float32 = 0, float16 = 1, super_unsigned = 2, super_signed = 3 };
enum class Offsets : int { none = 0, float32 = 1, float16 = 2, zeros = 3, super_unsigned = 4 };

// A packed weight in the kernels' layout: w[r, c] = scale · (code - middle) + offset.
struct PackedWeight {
    std::size_t rows, cols;  // out, in; the layout pads both
    std::size_t lanes;       // rows of a tile
    int bits;                // 4, 5 or 8
    bool halves;             // a scale for each 16 columns, not 32
    std::size_t group;       // columns of a scale, a multiple of 16 or 32; of a super-scale where there are two
    Scales scale_kind;
    Offsets offset_kind;
    const std::uint8_t *codes;
    const void *scales, *offsets;            // one for each tile, group and row of the tile
    const std::uint8_t *fine_scales, *fine_offsets;  // super kinds: one for each 16 or 32 columns
};

// A weight (rows, cols) as it lies in the checkpoint.
struct DenseWeight {
    std::size_t rows, cols;
    Dtype dtype;
    const void *data;
};

struct Weight {
    bool packed;
    PackedWeight q;
    DenseWeight d;
    const float *bias;  // or null
    std::size_t rows() const { return packed ? q.rows : d.rows; }
    std::size_t cols() const { return packed ? q.cols : d.cols; }
};

struct AttentionJob {
    std::size_t sequences, heads, kv_heads, head_dim, block_size, table_stride;
    std::size_t q_stride;  // numbers from one token's queries to the next one's
    std::size_t window;    // 0: none
    float scale;
    Dtype dtype, cache_dtype;
    const void *q, *k_cache, *v_cache;
    void *out;
    const std::int32_t *tables, *context_lens, *cu_seqlens;
};

// The weights of a decoder layer; norms in float32.
struct Layer {
    Weight q, k, v, o, gate, up, down;
    const float *norm1, *norm2;
    float eps;
};

// What a layer works on. `attention` lacks q and out.
struct LayerJob {
    std::size_t tokens;
    Dtype dtype;  // of x
    void *x;      // (tokens, hidden), changed in place
    const float *cos, *sin;  // (tokens, head_dim / 2)
    const std::int64_t *slots;
    void *k_cache, *v_cache;
    AttentionJob attention;
};

struct Kernels {
    const char *name;
    std::size_t lanes;
    void (*rms_norm)(const void *x, const void *weight, void *out, std::size_t rows,
                     std::size_t cols, float eps, Dtype dtype);
    void (*rope)(const void *x, const float *cos, const float *sin, void *out, std::size_t tokens,
                 std::size_t heads, std::size_t head_dim, Dtype dtype);
    void (*swiglu)(const void *gate, const void *up, void *out, std::size_t count, Dtype dtype);
    void (*store_kv)(const void *k, const void *v, void *k_cache, void *v_cache,
                     const std::int64_t *slots, std::size_t tokens, std::size_t heads,
                     std::size_t head_dim, Dtype dtype, Dtype cache_dtype);
    void (*attention)(const AttentionJob &job);
    void (*linear)(const Weight &weight, const void *x, void *out, std::size_t rows, Dtype dtype);
    void (*layer)(const Layer &layer, const LayerJob &job);
    void (*argmax)(const float *x, std::size_t stride, std::size_t rows, std::size_t cols,
                   std::int64_t *places, float *values);
    void (*top)(const float *x, std::size_t stride, std::size_t rows, std::size_t cols, std::size_t most,
                std::int64_t *places, float *values);
    void (*packed_rows)(const PackedWeight &weight, const std::int64_t *rows, std::size_t count,
                        void *out, Dtype dtype);
    void (*interleave)(const std::uint8_t *codes, std::uint8_t *out, std::size_t rows,
                       std::size_t cols, int bits);
};

namespace portable { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx512vnni { extern const Kernels kernels; }

}  // namespace qwenkit
