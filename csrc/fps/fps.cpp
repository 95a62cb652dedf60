// Schema of the stem, and farthest point sampling on the CPU: a thread for each cloud.
#include <torch/csrc/stable/ops.h>

#include "../common/pixel.h"
#include "../common/unfused.h"
#include "fps_args.h"
#include "fps_division.h"
#include "fps_walk.h"

namespace pyops::fps {
namespace {

#define PYOPS_WALK(A)                                                                                 \
  PYOPS_MULTIVERSION void sample_cloud(Cloud<A>& cloud, int64_t slot, int64_t samples, int64_t* to) { \
    walk<A>(cloud, slot, samples, to);                                                                \
  }
PYOPS_WALK(float)
PYOPS_WALK(double)
#undef PYOPS_WALK

// The points of a cloud, unpacked, and which of them can be samples.
template <class A>
struct Candidates {
  std::vector<A> points;
  std::vector<int32_t> place;

  template <class T>
  void load(const Problem& p, const Points<T>& from, int64_t b) {
    const int64_t count = p.length(b);
    points.resize(count * p.dims), place.clear();
    for (int64_t i = 0; i < count; ++i) {
      bool whole = true;
      for (int64_t d = 0; d < p.dims; ++d) {
        const A x = decode<T, A>(from.data[b * from.batch + i * from.point + d * from.axis]);
        points[i * p.dims + d] = x;
        whole = whole && x == x;
      }
      if (whole) place.push_back(int32_t(i));
    }
  }
};

template <class T>
void sample(const Problem& p, const Tensor& points, int64_t* out) {
  using A = Arithmetic<T>;
  const auto from = points_of<T>(points);
  torch::stable::parallel_for(0, p.batch, 1, [&](int64_t b, int64_t end) {
    Candidates<A> candidates;
    Division<A> division;
    Cloud<A> cloud;
    for (; b < end; ++b) {
      int64_t* const to = out + b * p.samples;
      candidates.load(p, from, b);
      std::vector<int32_t>& place = candidates.place;
      if (place.empty()) {
        std::fill_n(to, p.samples, int64_t(-1));
        continue;
      }
      const int32_t lowest = place[0];
      const bool tree = p.dims <= kMostTreeDims && int64_t(place.size()) >= kLeastTree && p.samples > 2;
      if (tree) division.divide(candidates.points.data(), p.dims, place);
      cloud.fill(candidates.points.data(), p.dims, place, tree);
      const auto begin = cloud.index.begin(), last = begin + int64_t(place.size());
      auto first = std::find(begin, last, p.start.at(b));
      if (first == last) first = std::find(begin, last, lowest);
      sample_cloud(cloud, first - begin, p.samples, to);
    }
  });
}

Tensor farthest_point_sample(const Tensor& points, int64_t m, std::optional<Tensor> lengths,
                             std::optional<Tensor> start) {
  const Problem p = check(points, m, lengths, start);
  const Tensor out = new_tensor(points, {p.batch, m}, ScalarType::Long);
  if (out.numel() == 0) return out;
  int64_t* const to = static_cast<int64_t*>(out.mutable_data_ptr());
  dispatch_floating(points.scalar_type(), "points", [&](auto zero) { sample<decltype(zero)>(p, points, to); });
  return out;
}

}  // namespace
}  // namespace pyops::fps

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("farthest_point_sample(Tensor points, SymInt m, Tensor? lengths, Tensor? start) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("farthest_point_sample", TORCH_BOX(&pyops::fps::farthest_point_sample));
}
