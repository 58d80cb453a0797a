#include "kernels.h"
#include "pool.h"

#define QWENKIT_NAME "portable"
#define QWENKIT_LANES 8
#define QWENKIT_DOT "dot_portable.inc"

namespace qwenkit::portable {
#include "kernels.inc"
}
