#include <immintrin.h>

#include "kernels.h"
#include "pool.h"

#define QWENKIT_NAME "avx512vnni"
#define QWENKIT_LANES 16
#define QWENKIT_DOT "dot_avx512.inc"

namespace qwenkit::avx512vnni {
#include "kernels.inc"
}
