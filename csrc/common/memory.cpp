// Fresh CPU memory for results that torch's own operators write.
#include "tensor.h"

namespace pyops {
namespace {

Tensor new_memory(const Tensor& like, std::vector<int64_t> sizes) {
  return new_tensor(like, sizes, like.scalar_type());
}

}  // namespace
}  // namespace pyops

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) { m.def("new_memory(Tensor like, SymInt[] sizes) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("new_memory", TORCH_BOX(&pyops::new_memory)); }
