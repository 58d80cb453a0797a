// qwenkit.ops._cpu: which instruction sets this machine and this build share, and the ops on raw pointers.
//
// The caller (ops/cpu.py) vouches for the pointers: contiguous, alive for the call, of the dtype named. What can be
// checked without knowing the tensor is checked here.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;

namespace {

struct Kernels {
    const char *name;
    decltype(&qwenkit::portable::rms_norm_f32) rms_norm_f32;
    decltype(&qwenkit::portable::rms_norm_bf16) rms_norm_bf16;
};

#define QWENKIT_KERNELS(isa) {#isa, qwenkit::isa::rms_norm_f32, qwenkit::isa::rms_norm_bf16}

// From the plainest to the best.
const std::vector<Kernels> &supported() {
    static const std::vector<Kernels> kernels = [] {
        std::vector<Kernels> found = {QWENKIT_KERNELS(portable)};
#if defined(QWENKIT_HAS_AVX2) || defined(QWENKIT_HAS_AVX512)
        __builtin_cpu_init();
#endif
#ifdef QWENKIT_HAS_AVX2
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            found.push_back(QWENKIT_KERNELS(avx2));
#endif
#ifdef QWENKIT_HAS_AVX512
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            found.push_back(QWENKIT_KERNELS(avx512));
#endif
        return found;
    }();
    return kernels;
}

std::atomic<const Kernels *> active{nullptr};

const Kernels &kernels() { return *active.load(std::memory_order_relaxed); }

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels &entry : supported()) names.emplace_back(entry.name);
    return names;
}

std::string instruction_set() { return kernels().name; }

void use_instruction_set(const std::string &name) {
    for (const Kernels &entry : supported())
        if (name == entry.name) {
            active.store(&entry);
            return;
        }
    throw std::invalid_argument("not available here: " + name);
}

void rms_norm(std::uintptr_t x, std::uintptr_t weight, std::uintptr_t out, std::size_t rows,
              std::size_t cols, float eps, const std::string &dtype) {
    if (rows == 0 || cols == 0) return;
    if (!x || !weight || !out) throw std::invalid_argument("a null pointer");
    nb::gil_scoped_release release;
    if (dtype == "float32")
        kernels().rms_norm_f32(reinterpret_cast<const float *>(x),
                               reinterpret_cast<const float *>(weight),
                               reinterpret_cast<float *>(out), rows, cols, eps);
    else if (dtype == "bfloat16")
        kernels().rms_norm_bf16(reinterpret_cast<const std::uint16_t *>(x),
                                reinterpret_cast<const std::uint16_t *>(weight),
                                reinterpret_cast<std::uint16_t *>(out), rows, cols, eps);
    else
        throw std::invalid_argument("dtype must be float32 or bfloat16, not " + dtype);
}

}  // namespace

NB_MODULE(_cpu, m) {
    active.store(&supported().back());
    m.doc() = "CPU kernels of qwenkit on raw pointers; see qwenkit/ops/cpu.py.";
    m.def("instruction_sets", &instruction_sets, "What can run here, from the plainest to the best.");
    m.def("instruction_set", &instruction_set, "The one in use.");
    m.def("use_instruction_set", &use_instruction_set, nb::arg("name"),
          "Switch; ValueError if it cannot run here.");
    m.def("rms_norm", &rms_norm, nb::arg("x"), nb::arg("weight"), nb::arg("out"), nb::arg("rows"),
          nb::arg("cols"), nb::arg("eps"), nb::arg("dtype"),
          "Row-wise RMS norm of (rows, cols) contiguous values; releases the GIL.");
}
