// The kernels' interface. Every instruction set defines the same names in a namespace of its own.
//
// Kernel files include nothing but <cstdint> and <cstddef>: an inline function of the standard library compiled here
// with AVX flags could be the copy that the linker keeps for the whole module.
#pragma once

#include <cstddef>
#include <cstdint>

#define QWENKIT_DECLARE_KERNELS(isa)                                                            \
    namespace qwenkit::isa {                                                                    \
    void rms_norm_f32(const float *x, const float *weight, float *out, std::size_t rows,        \
                      std::size_t cols, float eps);                                             \
    void rms_norm_bf16(const std::uint16_t *x, const std::uint16_t *weight, std::uint16_t *out, \
                       std::size_t rows, std::size_t cols, float eps);                          \
    }

QWENKIT_DECLARE_KERNELS(portable)
QWENKIT_DECLARE_KERNELS(avx2)
QWENKIT_DECLARE_KERNELS(avx512)
