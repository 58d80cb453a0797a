#include "kernels.h"

namespace qwenkit::avx2 {
#include "rms_norm.inc"
}
