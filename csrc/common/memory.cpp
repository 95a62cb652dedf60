// Memory of large CPU results, for those that torch's own operators write, and how much of it is kept.
#include "tensor.h"

namespace pyops {
namespace {

Tensor new_memory(const Tensor& like, std::vector<int64_t> sizes) {
  return new_tensor(like, sizes, like.scalar_type());
}

// Returns the former limit.
int64_t keep_memory(int64_t bytes) {
#if defined(__linux__)
  return int64_t(memory::kept().keep(size_t(bytes)));
#else
  return 0;
#endif
}

}  // namespace
}  // namespace pyops

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("new_memory(Tensor like, SymInt[] sizes) -> Tensor");
  m.def("keep_memory(int bytes) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("new_memory", TORCH_BOX(&pyops::new_memory)); }
STABLE_TORCH_LIBRARY_IMPL(pyops, CompositeExplicitAutograd, m) {
  m.impl("keep_memory", TORCH_BOX(&pyops::keep_memory));
}
