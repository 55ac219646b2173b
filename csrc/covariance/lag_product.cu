#include "common/instances.cuh"
#include "covariance/lag_product.cuh"

namespace igm {

IGM_INSTANCE(lag_product_kernel<igm::UnitHalf<igm::BFloat16>>)
IGM_INSTANCE(lag_product_kernel<igm::UnitHalf<igm::Float16>>)
IGM_INSTANCE(lag_product_kernel<igm::UnitTf32>)
IGM_INSTANCE(lag_product_kernel<igm::UnitTf32x3>)
IGM_INSTANCE(lag_reduce_kernel)
IGM_INSTANCE(lag_assemble_kernel)

}  // namespace igm
