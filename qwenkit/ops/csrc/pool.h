// The kernels' own threads. One region runs at a time; a second caller meanwhile works alone.
//
// Threads join a region if they are awake in time and are never waited for otherwise, so a busy machine costs speed
// and not correctness: indices are handed out one by one, and each result depends on its index alone.
#pragma once

#include <cstddef>

namespace qwenkit {

// Calls body(context, i) once for every i in [0, count), on this thread and on the pool's. Returns when all are done.
void parallel(std::size_t count, void (*body)(void *, std::size_t), void *context);

// The number of threads that a region may use, the caller's included; at least 1.
std::size_t num_threads();
void set_num_threads(std::size_t count);

// Memory of this thread, aligned to 64 bytes, with anything in it; valid until this thread asks for the slot again.
constexpr int kScratchSlots = 8;
void *scratch(int slot, std::size_t bytes);

}  // namespace qwenkit
