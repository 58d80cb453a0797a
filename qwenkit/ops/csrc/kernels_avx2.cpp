#include <immintrin.h>

#include "kernels.h"
#include "pool.h"

#define QWENKIT_NAME "avx2"
#define QWENKIT_LANES 8
#define QWENKIT_DOT "dot_avx2.inc"

namespace qwenkit::avx2 {
#include "kernels.inc"
}
