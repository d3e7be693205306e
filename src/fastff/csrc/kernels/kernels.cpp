// The kernels of one instruction set; compiled once for each, with FASTFF_ISA its name.
#include "indexed.h"
#include "product_keys.h"
#include "rows.h"
#include "tree_backward.h"
#include "tree_forward.h"
#include "tree_int8.h"

#define FASTFF_TEXT(name) #name
#define FASTFF_NAME(name) FASTFF_TEXT(name)
#define FASTFF_EACH(kernel) {kernel<float>, kernel<BFloat16>, kernel<Float16>}

namespace FASTFF_ISA {
using namespace fastff;
extern const Kernels kernels;
const Kernels kernels = {FASTFF_NAME(FASTFF_ISA), FASTFF_EACH(tree_forward), FASTFF_EACH(tree_backward),
                         FASTFF_EACH(tree_int8), FASTFF_EACH(indexed_forward), FASTFF_EACH(indexed_backward),
                         product_keys, product_keys_backward, adamw_rows};
}  // namespace FASTFF_ISA
