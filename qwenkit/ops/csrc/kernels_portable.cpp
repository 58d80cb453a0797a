#include "kernels.h"

namespace qwenkit::portable {
#include "rms_norm.inc"
}
