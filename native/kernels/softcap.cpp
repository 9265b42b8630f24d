// Logits held below a cap.
#include "elementary.h"
#include "kernels.h"

namespace penstock::PENSTOCK_ISA {

void softcap(const SoftcapArgs& args, int64_t row_begin, int64_t row_end) noexcept {
    for (int64_t at = row_begin * args.width, end = row_end * args.width; at < end; at += kLanes) {
        const int n = end - at < kLanes ? static_cast<int>(end - at) : kLanes;
        store_n(args.y + at, tanh(load_n(args.x + at, n) / args.cap) * args.cap, n);
    }
}

}  // namespace penstock::PENSTOCK_ISA
