// Checks that keep relation-aware modulation inside its memory, once for every backend, and the sizes they establish.
#pragma once

#include "../lut3d/lut3d_args.h"
#include "modulation.h"

namespace pyops::modulation {

struct Problem {
  int64_t batch, height, width;
  int64_t key_height, key_width;  // of the query, and so of the pooled keys
  lut3d::Problem lut;
};

inline Problem check(const Tensor& image, const Tensor& lut, const Tensor& query, const Tensor& parameters) {
  const auto table = lut3d::check(image, lut, std::nullopt, false);
  PYOPS_CHECK(image.scalar_type() != ScalarType::Double, "image must not be float64");
  PYOPS_CHECK(query.dim() == 4 && query.size(0) == image.size(0) && query.size(1) == kFeatures && query.size(2) > 0 &&
                  query.size(3) > 0 && query.scalar_type() == ScalarType::Float,
              "query must be [B, 8, h, w] with image's B, float32");
  check_same_device(query, image, "query");
  PYOPS_CHECK(parameters.dim() == 1 && parameters.size(0) == kParameters && parameters.is_contiguous() &&
                  parameters.scalar_type() == ScalarType::Float,
              "parameters must be [", kParameters, "], contiguous float32");
  check_same_device(parameters, image, "parameters");
  return {image.size(0), image.size(2), image.size(3), query.size(2), query.size(3), table};
}

}  // namespace pyops::modulation
