#include "pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace qwenkit {
namespace {

// Long enough to stay awake between the operations of one layer, short against a token.
constexpr auto kSpin = std::chrono::microseconds(60);

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
  public:
    void run(std::size_t count, void (*body)(void *, std::size_t), void *context) {
        std::size_t helpers = std::min(limit.load(std::memory_order_relaxed), count) - 1;
        if (helpers == 0 || !busy.try_lock()) {
            for (std::size_t i = 0; i < count; ++i) body(context, i);
            return;
        }
        std::lock_guard<std::mutex> owner(busy, std::adopt_lock);
        grow(helpers);
        body_ = body;
        context_ = context;
        count_ = count;
        helpers_ = helpers;
        next_.store(0, std::memory_order_relaxed);
        std::uint64_t epoch = (state_.load(std::memory_order_relaxed) >> kEpochShift) + 1;
        state_.store(epoch << kEpochShift | kOpen, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) {
            { std::lock_guard<std::mutex> lock(sleep_); }
            wake_.notify_all();
        }
        work();
        state_.fetch_and(~kOpen, std::memory_order_acq_rel);
        for (int spins = 0; state_.load(std::memory_order_acquire) & kInside; ++spins) {
            pause();
            if (spins > 100) std::this_thread::yield();  // a helper may have lost its core
        }
    }

    std::atomic<std::size_t> limit{1};

  private:
    // One word: the region's number, whether it may be joined, and how many helpers are inside.
    static constexpr int kEpochShift = 24;
    static constexpr std::uint64_t kOpen = 1u << 23, kInside = (1u << 23) - 1;

    void work() {
        for (;;) {
            std::size_t i = next_.fetch_add(1, std::memory_order_relaxed);
            if (i >= count_) return;
            body_(context_, i);
        }
    }

    // True when this helper is inside a region newer than `seen`.
    bool enter(std::uint64_t &seen) {
        std::uint64_t state = state_.load(std::memory_order_acquire);
        while ((state & kOpen) && state >> kEpochShift != seen) {
            if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
                seen = state >> kEpochShift;
                // The job's fields are stable now: the caller waits for whoever is inside.
                return true;
            }
            pause();
        }
        return false;
    }

    bool fresh(std::uint64_t seen) const {
        std::uint64_t state = state_.load(std::memory_order_seq_cst);
        return (state & kOpen) && state >> kEpochShift != seen;
    }

    void help(std::size_t index) {
        std::uint64_t seen = 0;
        for (;;) {
            auto until = std::chrono::steady_clock::now() + kSpin;
            while (!fresh(seen)) {
                for (int i = 0; i < 32 && !fresh(seen); ++i) pause();
                if (std::chrono::steady_clock::now() > until) {
                    std::unique_lock<std::mutex> lock(sleep_);
                    sleepers_.fetch_add(1, std::memory_order_seq_cst);
                    wake_.wait(lock, [&] { return fresh(seen); });
                    sleepers_.fetch_sub(1, std::memory_order_relaxed);
                    break;
                }
            }
            if (!enter(seen)) continue;
            if (index < helpers_) work();
            state_.fetch_sub(1, std::memory_order_release);
        }
    }

    void grow(std::size_t helpers) {
        if (started_ >= helpers) return;
        sigset_t all, before;  // signals belong to the program's own threads
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            for (; started_ < helpers; ++started_)
                std::thread([this, index = started_] { help(index); }).detach();
        } catch (const std::system_error &) {
            // No more threads to be had: the ones that are there do the work.
            limit.store(started_ + 1, std::memory_order_relaxed);
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    std::mutex busy, sleep_;
    std::condition_variable wake_;
    std::atomic<int> sleepers_{0};
    alignas(64) std::atomic<std::uint64_t> state_{0};
    alignas(64) std::atomic<std::size_t> next_{0};
    void (*body_)(void *, std::size_t) = nullptr;
    void *context_ = nullptr;
    std::size_t count_ = 0, helpers_ = 0, started_ = 0;
};

std::atomic<Pool *> current{nullptr};

// Never freed: helpers may outlive every destructor of the process. A forked child has no helpers, so it begins anew.
Pool &pool() {
    Pool *found = current.load(std::memory_order_acquire);
    if (found) return *found;
    static std::mutex making;
    std::lock_guard<std::mutex> lock(making);
    if (!current.load()) {
        current.store(new Pool);
        pthread_atfork(nullptr, nullptr, [] {
            Pool *fresh = new Pool;
            fresh->limit.store(current.load()->limit.load());
            current.store(fresh);
        });
    }
    return *current.load();
}

struct Buffer {
    void *memory = nullptr;
    std::size_t bytes = 0;
    ~Buffer() { std::free(memory); }
};

}  // namespace

void parallel(std::size_t count, void (*body)(void *, std::size_t), void *context) {
    if (count > 0) pool().run(count, body, context);
}

std::size_t num_threads() { return pool().limit.load(); }

void set_num_threads(std::size_t count) { pool().limit.store(std::max<std::size_t>(count, 1)); }

void *scratch(int slot, std::size_t bytes) {
    thread_local Buffer buffers[kScratchSlots];
    Buffer &buffer = buffers[slot];
    if (buffer.bytes < bytes) {
        std::free(buffer.memory);
        buffer.bytes = 0;
        std::size_t rounded = (bytes + bytes / 4 + 4095) / 4096 * 4096;
        buffer.memory = std::aligned_alloc(64, rounded);
        if (!buffer.memory) throw std::bad_alloc();
        buffer.bytes = rounded;
    }
    return buffer.memory;
}

}  // namespace qwenkit
