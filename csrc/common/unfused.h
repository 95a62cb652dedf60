// Included before the headers of a stem: from here on no product is fused with a sum, so that every operation is rounded by
// itself. Files that want fused products elsewhere use barriers instead, which cost GCC a vector's rearrangement each.
#pragma once

#define PYOPS_UNFUSED 1
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif
