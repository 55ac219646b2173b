#include "common/instances.cuh"
#include "covariance/stage.cuh"

namespace igm {

IGM_INSTANCE(stage_input_kernel<float>)
IGM_INSTANCE(stage_input_kernel<unsigned short>)
IGM_INSTANCE(omega_mask_kernel<float>)
IGM_INSTANCE(omega_mask_kernel<double>)
IGM_INSTANCE(stage_omega_kernel<float>)
IGM_INSTANCE(stage_omega_kernel<double>)

}  // namespace igm
