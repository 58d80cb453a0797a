// qwenkit.ops._cpu: which instruction sets this machine and this build share, and the ops on raw pointers.
//
// The caller (ops/cpu.py and its neighbours) vouches for the pointers: contiguous, alive for the call, of the dtype
// named. What can be checked without knowing the tensor is checked here.

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace nb = nanobind;
using namespace qwenkit;

namespace {

using Address = std::uintptr_t;

// From the plainest to the best.
const std::vector<const Kernels *> &supported() {
    static const std::vector<const Kernels *> found = [] {
        std::vector<const Kernels *> sets = {&portable::kernels};
#if defined(QWENKIT_HAS_AVX2) || defined(QWENKIT_HAS_AVX512) || defined(QWENKIT_HAS_AVX512VNNI)
        __builtin_cpu_init();
        bool avx2_ = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                     __builtin_cpu_supports("f16c");
        bool avx512_ = avx2_ && __builtin_cpu_supports("avx512f") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512dq");
        bool vnni_ = avx512_ && __builtin_cpu_supports("avx512vnni");
        (void)vnni_;
#endif
#ifdef QWENKIT_HAS_AVX2
        if (avx2_) sets.push_back(&avx2::kernels);
#endif
#ifdef QWENKIT_HAS_AVX512
        if (avx512_) sets.push_back(&avx512::kernels);
#endif
#ifdef QWENKIT_HAS_AVX512VNNI
        if (vnni_) sets.push_back(&avx512vnni::kernels);
#endif
        return sets;
    }();
    return found;
}

std::atomic<const Kernels *> active{nullptr};

const Kernels &kernels() { return *active.load(std::memory_order_relaxed); }

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels *entry : supported()) names.emplace_back(entry->name);
    return names;
}

void use_instruction_set(const std::string &name) {
    for (const Kernels *entry : supported())
        if (name == entry->name) {
            active.store(entry);
            return;
        }
    throw std::invalid_argument("not available here: " + name);
}

template <typename T = void>
T *pointer(Address address) {
    if (!address) throw std::invalid_argument("a null pointer");
    return reinterpret_cast<T *>(address);
}

template <typename T = void>
T *maybe(Address address) {
    return reinterpret_cast<T *>(address);
}

// Python's lock is let go for work on many numbers. Giving it away for little work could mean a long wait for it.
class Released {
  public:
    explicit Released(std::size_t numbers) {
        if (numbers >= std::size_t{1} << 18) release.emplace();
    }

  private:
    std::optional<nb::gil_scoped_release> release;
};

Dtype dtype_of(const std::string &name) {
    if (name == "float32") return Dtype::float32;
    if (name == "bfloat16") return Dtype::bfloat16;
    throw std::invalid_argument("dtype must be float32 or bfloat16, not " + name);
}

Dtype cache_dtype_of(const std::string &name) {
    return name == "int8" ? Dtype::int8 : dtype_of(name);
}

void rms_norm(Address x, Address weight, Address out, std::size_t rows, std::size_t cols, float eps,
              const std::string &dtype) {
    if (rows == 0 || cols == 0) return;
    Dtype type = dtype_of(dtype);
    const void *from = pointer(x), *scale = pointer(weight);
    void *to = pointer(out);
    nb::gil_scoped_release release;
    kernels().rms_norm(from, scale, to, rows, cols, eps, type);
}

void rope(Address x, Address cos, Address sin, Address out, std::size_t tokens, std::size_t heads,
          std::size_t head_dim, const std::string &dtype) {
    if (tokens == 0 || heads == 0 || head_dim == 0) return;
    Dtype type = dtype_of(dtype);
    const void *from = pointer(x);
    const float *c = pointer<float>(cos), *s = pointer<float>(sin);
    void *to = pointer(out);
    nb::gil_scoped_release release;
    kernels().rope(from, c, s, to, tokens, heads, head_dim, type);
}

void swiglu(Address gate, Address up, Address out, std::size_t count, const std::string &dtype) {
    if (count == 0) return;
    Dtype type = dtype_of(dtype);
    const void *a = pointer(gate), *b = pointer(up);
    void *to = pointer(out);
    nb::gil_scoped_release release;
    kernels().swiglu(a, b, to, count, type);
}

void store_kv(Address k, Address v, Address k_cache, Address v_cache, Address slots,
              std::size_t tokens, std::size_t heads, std::size_t head_dim, const std::string &dtype,
              const std::string &cache_dtype) {
    if (tokens == 0 || heads == 0 || head_dim == 0) return;
    Dtype type = dtype_of(dtype), cache = cache_dtype_of(cache_dtype);
    const void *a = pointer(k), *b = pointer(v);
    void *to_k = pointer(k_cache), *to_v = pointer(v_cache);
    const std::int64_t *at = pointer<std::int64_t>(slots);
    nb::gil_scoped_release release;
    kernels().store_kv(a, b, to_k, to_v, at, tokens, heads, head_dim, type, cache);
}

AttentionJob attention_job(Address tables, Address context_lens, Address cu_seqlens,
                           const std::vector<std::size_t> &sizes, float scale) {
    if (sizes.size() != 7) throw std::invalid_argument("seven sizes are needed");
    AttentionJob job{};
    job.sequences = sizes[0], job.heads = sizes[1], job.kv_heads = sizes[2];
    job.head_dim = sizes[3], job.block_size = sizes[4], job.table_stride = sizes[5];
    job.window = sizes[6], job.scale = scale;
    if (!job.kv_heads || job.heads % job.kv_heads || !job.head_dim || !job.block_size)
        throw std::invalid_argument("heads must be a multiple of the key-value heads");
    job.q_stride = job.heads * job.head_dim;
    job.tables = pointer<std::int32_t>(tables);
    job.context_lens = pointer<std::int32_t>(context_lens);
    job.cu_seqlens = pointer<std::int32_t>(cu_seqlens);
    return job;
}

void paged_attention(Address q, Address k_cache, Address v_cache, Address out, Address tables,
                     Address context_lens, Address cu_seqlens, std::vector<std::size_t> sizes,
                     float scale, const std::string &dtype, const std::string &cache_dtype) {
    if (sizes.size() == 7 && sizes[0] == 0) return;
    AttentionJob job = attention_job(tables, context_lens, cu_seqlens, sizes, scale);
    job.dtype = dtype_of(dtype), job.cache_dtype = cache_dtype_of(cache_dtype);
    job.q = pointer(q), job.k_cache = pointer(k_cache), job.v_cache = pointer(v_cache);
    job.out = pointer(out);
    nb::gil_scoped_release release;
    kernels().attention(job);
}

Weight dense_weight(std::size_t rows, std::size_t cols, Address data, const std::string &dtype) {
    Weight w{};
    w.d = {rows, cols, dtype_of(dtype), pointer(data)};
    return w;
}

// kinds: scales and offsets by number; `addresses`: codes, scales, offsets, fine scales, fine offsets.
Weight packed_weight(std::size_t rows, std::size_t cols, std::size_t lanes, int bits, bool halves,
                     std::size_t group, std::pair<int, int> kinds, std::vector<Address> addresses) {
    std::size_t unit = halves ? 16 : 32;
    if ((bits != 4 && bits != 5 && bits != 8) || (bits == 5 && halves) || !group || group % unit || addresses.size() != 5)
        throw std::invalid_argument("no such layout");
    Weight w{};
    w.packed = true;
    PackedWeight &q = w.q;
    q.rows = rows, q.cols = cols, q.lanes = lanes, q.bits = bits, q.halves = halves, q.group = group;
    q.scale_kind = static_cast<Scales>(kinds.first);
    q.offset_kind = static_cast<Offsets>(kinds.second);
    q.codes = pointer<std::uint8_t>(addresses[0]);
    q.scales = pointer(addresses[1]);
    q.offsets = maybe(addresses[2]);
    q.fine_scales = maybe<std::uint8_t>(addresses[3]);
    q.fine_offsets = maybe<std::uint8_t>(addresses[4]);
    bool fine = q.scale_kind == Scales::super_unsigned || q.scale_kind == Scales::super_signed;
    if ((fine && !q.fine_scales) || (q.offset_kind != Offsets::none && !q.offsets) ||
        (q.offset_kind == Offsets::super_unsigned && !q.fine_offsets))
        throw std::invalid_argument("a null pointer");
    return w;
}

void check_lanes(const Weight &weight) {
    if (weight.packed && weight.q.lanes != kernels().lanes)
        throw std::invalid_argument("the weight was packed for another instruction set");
}

void linear(const Weight &weight, Address x, Address out, std::size_t rows,
            const std::string &dtype, Address bias) {
    if (rows == 0 || weight.rows() == 0) return;
    Dtype type = dtype_of(dtype);
    check_lanes(weight);
    Weight mine = weight;
    mine.bias = maybe<float>(bias);
    const void *from = pointer(x);
    void *to = pointer(out);
    nb::gil_scoped_release release;
    kernels().linear(mine, from, to, rows, type);
}

// rows: int64, of a weight without offsets.
void packed_rows(const Weight &weight, Address rows, std::size_t count, Address out, const std::string &dtype) {
    if (count == 0 || weight.cols() == 0) return;
    check_lanes(weight);
    if (!weight.packed || weight.q.offset_kind != Offsets::none) throw std::invalid_argument("a weight with offsets");
    const std::int64_t *at = pointer<std::int64_t>(rows);
    for (std::size_t i = 0; i < count; ++i)
        if (at[i] < 0 || static_cast<std::size_t>(at[i]) >= weight.rows()) throw std::out_of_range("no such row");
    Dtype type = dtype_of(dtype);
    void *to = pointer(out);
    Released released(count * weight.cols());
    kernels().packed_rows(weight.q, at, count, to, type);
}

std::pair<std::vector<std::int64_t>, std::vector<float>> argmax(Address x, std::size_t stride, std::size_t rows,
                                                                std::size_t cols) {
    if (cols == 0) throw std::invalid_argument("rows without values");
    std::vector<std::int64_t> places(rows);
    std::vector<float> values(rows);
    if (rows == 0) return {places, values};
    const float *from = pointer<float>(x);
    Released released(rows * cols);
    kernels().argmax(from, stride, rows, cols, places.data(), values.data());
    return {places, values};
}

// places: int64, values: float32, both (rows, most).
void top(Address x, std::size_t stride, std::size_t rows, std::size_t cols, std::size_t most, Address places,
         Address values) {
    if (most == 0 || most > cols) throw std::invalid_argument("so many values are not there");
    if (rows == 0) return;
    const float *from = pointer<float>(x);
    std::int64_t *at = pointer<std::int64_t>(places);
    float *to = pointer<float>(values);
    Released released(rows * cols);
    kernels().top(from, stride, rows, cols, most, at, to);
}

// weights: q, k, v, o, gate, up, down; biases: float32 or 0, one for each.
Layer make_layer(const std::vector<Weight> &weights, const std::vector<Address> &biases, Address norm1,
                 Address norm2, float eps) {
    if (weights.size() != 7 || biases.size() != 7) throw std::invalid_argument("seven weights are needed");
    Layer layer{};
    Weight *to[] = {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down};
    for (std::size_t i = 0; i < 7; ++i) *to[i] = weights[i], to[i]->bias = maybe<float>(biases[i]);
    layer.norm1 = pointer<float>(norm1), layer.norm2 = pointer<float>(norm2), layer.eps = eps;
    std::size_t hidden = layer.q.cols();
    if (layer.k.cols() != hidden || layer.v.cols() != hidden || layer.gate.cols() != hidden ||
        layer.up.cols() != hidden || layer.o.rows() != hidden || layer.down.rows() != hidden ||
        layer.k.rows() != layer.v.rows() || layer.gate.rows() != layer.up.rows() ||
        layer.o.cols() != layer.q.rows() || layer.down.cols() != layer.gate.rows())
        throw std::invalid_argument("the weights do not make a layer");
    return layer;
}

// addresses: x, cos, sin, slots, tables, context lengths, cu_seqlens; caches: k and v, and the window, of each layer.
void run_layers(const std::vector<const Layer *> &layers, const std::vector<Address> &addresses,
                const std::vector<std::tuple<Address, Address, std::size_t>> &caches, std::size_t tokens,
                const std::vector<std::size_t> &sizes, float scale, const std::string &dtype,
                const std::string &cache_dtype) {
    if (addresses.size() != 7 || caches.size() != layers.size())
        throw std::invalid_argument("seven addresses are needed, and caches for each layer");
    if (tokens == 0) return;
    LayerJob job{};
    job.attention = attention_job(addresses[4], addresses[5], addresses[6], sizes, scale);
    const AttentionJob &a = job.attention;
    for (const Layer *layer : layers) {
        const Weight *all[] = {&layer->q, &layer->k, &layer->v, &layer->o, &layer->gate, &layer->up, &layer->down};
        for (const Weight *weight : all) check_lanes(*weight);
        if (layer->q.rows() != a.heads * a.head_dim || layer->k.rows() != a.kv_heads * a.head_dim)
            throw std::invalid_argument("the heads do not fit the weights");
    }
    job.tokens = tokens, job.dtype = dtype_of(dtype), job.x = pointer(addresses[0]);
    job.cos = pointer<float>(addresses[1]), job.sin = pointer<float>(addresses[2]);
    job.slots = pointer<std::int64_t>(addresses[3]);
    job.attention.dtype = Dtype::float32, job.attention.cache_dtype = cache_dtype_of(cache_dtype);
    nb::gil_scoped_release release;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        auto [k_cache, v_cache, window] = caches[i];
        job.attention.k_cache = job.k_cache = pointer(k_cache);
        job.attention.v_cache = job.v_cache = pointer(v_cache);
        job.attention.window = window;
        kernels().layer(*layers[i], job);
    }
}

void interleave(Address codes, Address out, std::size_t rows, std::size_t cols, int bits) {
    if (cols % 32 || (bits != 4 && bits != 5 && bits != 8))
        throw std::invalid_argument("no such layout");
    if (rows == 0 || cols == 0) return;
    const std::uint8_t *from = pointer<std::uint8_t>(codes);
    std::uint8_t *to = pointer<std::uint8_t>(out);
    nb::gil_scoped_release release;
    kernels().interleave(from, to, rows, cols, bits);
}

}  // namespace

NB_MODULE(_cpu, m) {
    active.store(supported().back());
    nb::set_leak_warnings(false);  // a thread that still answers at exit holds weights: no leak
    m.doc() = "CPU kernels of qwenkit on raw pointers; see qwenkit/ops/cpu.py.";
    m.def("instruction_sets", &instruction_sets, "What can run here, from the plainest to the best.");
    m.def("instruction_set", [] { return std::string(kernels().name); }, "The one in use.");
    m.def("use_instruction_set", &use_instruction_set, nb::arg("name"),
          "Switch; ValueError if it cannot run here.");
    m.def("lanes", [] { return kernels().lanes; }, "Rows of a tile of packed weights.");
    m.def("threads", &num_threads, "How many threads an op may use, the caller's included.");
    m.def("set_threads", &set_num_threads, nb::arg("count"), "Change that; at least 1.");
    m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("out"), nb::arg("rows"),
          nb::arg("cols"), nb::arg("eps"), nb::arg("dtype"),
          "Row-wise RMS norm of (rows, cols) contiguous values; releases the GIL.");
    m.def("rope", &rope, nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("out"),
          nb::arg("tokens"), nb::arg("heads"), nb::arg("head_dim"), nb::arg("dtype"));
    m.def("swiglu", &swiglu, nb::arg("gate"), nb::arg("up"), nb::arg("out"), nb::arg("count"),
          nb::arg("dtype"));
    m.def("store_kv", &store_kv, nb::arg("k"), nb::arg("v"), nb::arg("k_cache"), nb::arg("v_cache"),
          nb::arg("slots"), nb::arg("tokens"), nb::arg("heads"), nb::arg("head_dim"), nb::arg("dtype"),
          nb::arg("cache_dtype"));
    m.def("paged_attention", &paged_attention, nb::arg("q"), nb::arg("k_cache"), nb::arg("v_cache"),
          nb::arg("out"), nb::arg("tables"), nb::arg("context_lens"), nb::arg("cu_seqlens"),
          nb::arg("sizes"), nb::arg("scale"), nb::arg("dtype"), nb::arg("cache_dtype"),
          "sizes: sequences, heads, kv heads, head dim, block size, table stride, window or 0.");
    nb::class_<Weight>(m, "Weight", "A weight's addresses; whoever holds it keeps the tensors alive.")
        .def_prop_ro("rows", &Weight::rows)
        .def_prop_ro("cols", &Weight::cols);
    m.def("dense_weight", &dense_weight, nb::arg("rows"), nb::arg("cols"), nb::arg("data"),
          nb::arg("dtype"));
    m.def("packed_weight", &packed_weight, nb::arg("rows"), nb::arg("cols"), nb::arg("lanes"),
          nb::arg("bits"), nb::arg("halves"), nb::arg("group"), nb::arg("kinds"),
          nb::arg("addresses"));
    m.def("linear", &linear, nb::arg("weight"), nb::arg("x"), nb::arg("out"), nb::arg("rows"),
          nb::arg("dtype"), nb::arg("bias"), "x, out: of the dtype; bias: float32 or 0.");
    m.def("packed_rows", &packed_rows, nb::arg("weight"), nb::arg("rows"), nb::arg("count"), nb::arg("out"),
          nb::arg("dtype"), "rows: int64; out: (count, cols) of the dtype.");
    m.def("argmax", &argmax, nb::arg("x"), nb::arg("stride"), nb::arg("rows"), nb::arg("cols"),
          "Places and values; the first NaN counts as the largest.");
    m.def("top", &top, nb::arg("x"), nb::arg("stride"), nb::arg("rows"), nb::arg("cols"), nb::arg("most"),
          nb::arg("places"), nb::arg("values"), "places: int64, values: float32, in falling order.");
    nb::class_<Layer>(m, "Layer", "A decoder layer's addresses; its maker keeps the tensors alive.");
    m.def("make_layer", &make_layer, nb::arg("weights"), nb::arg("biases"), nb::arg("norm1"),
          nb::arg("norm2"), nb::arg("eps"), "weights: q, k, v, o, gate, up, down.");
    m.def("run_layers", &run_layers, nb::arg("layers"), nb::arg("addresses"), nb::arg("caches"),
          nb::arg("tokens"), nb::arg("sizes"), nb::arg("scale"), nb::arg("dtype"), nb::arg("cache_dtype"),
          "addresses: x, cos, sin, slots, tables, context lengths, cu_seqlens; caches: (k, v, window) of each.");
    m.def("interleave", &interleave, nb::arg("codes"), nb::arg("out"), nb::arg("rows"),
          nb::arg("cols"), nb::arg("bits"));
}
