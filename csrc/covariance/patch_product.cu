#include "common/instances.cuh"
#include "covariance/patch_gather.cuh"
#include "covariance/patch_pieces.cuh"
#include "covariance/patch_reduction.cuh"

namespace igm {

// Numbers: kPatchCovariance, kPatchImage, kPatchSketch.
IGM_INSTANCE(patch_product_kernel<igm::UnitHalf<igm::BFloat16>, 0>)
IGM_INSTANCE(patch_product_kernel<igm::UnitHalf<igm::Float16>, 0>)
IGM_INSTANCE(patch_product_kernel<igm::UnitTf32, 0>)
IGM_INSTANCE(patch_product_kernel<igm::UnitTf32x3, 0>)
IGM_INSTANCE(patch_product_kernel<igm::UnitPlain<float>, 0>)
IGM_INSTANCE(patch_product_kernel<igm::UnitPlain<double>, 0>)
IGM_INSTANCE(patch_product_kernel<igm::UnitTf32, 1>)
IGM_INSTANCE(patch_product_kernel<igm::UnitTf32x3, 1>)
IGM_INSTANCE(patch_product_kernel<igm::UnitTf32x2, 1>)
IGM_INSTANCE(patch_product_kernel<igm::UnitPlain<float>, 1>)
IGM_INSTANCE(patch_product_kernel<igm::UnitPlain<double>, 1>)
IGM_INSTANCE(patch_product_kernel<igm::UnitTf32, 2>)
IGM_INSTANCE(patch_product_kernel<igm::UnitTf32x3, 2>)
IGM_INSTANCE(patch_product_kernel<igm::UnitTf32x2, 2>)
IGM_INSTANCE(patch_product_kernel<igm::UnitPlain<float>, 2>)
IGM_INSTANCE(patch_product_kernel<igm::UnitPlain<double>, 2>)

IGM_INSTANCE(image_sum_kernel<float>)
IGM_INSTANCE(image_sum_kernel<double>)
IGM_INSTANCE(patch_reduction_kernel<float, true>)
IGM_INSTANCE(patch_reduction_kernel<double, true>)
IGM_INSTANCE(patch_reduction_kernel<float, false>)
IGM_INSTANCE(patch_reduction_kernel<double, false>)

}  // namespace igm
