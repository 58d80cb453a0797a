#include "kernels.h"

namespace qwenkit::avx512 {
#include "rms_norm.inc"
}
