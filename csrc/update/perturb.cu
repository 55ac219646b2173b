#include "common/instances.cuh"
#include "update/perturb.cuh"

namespace igm {

IGM_INSTANCE(norm_partials_kernel<false, float>)
IGM_INSTANCE(norm_partials_kernel<false, double>)
IGM_INSTANCE(norm_partials_kernel<false, igm::BFloat16>)
IGM_INSTANCE(norm_partials_kernel<true, float>)
IGM_INSTANCE(norm_partials_kernel<true, double>)
IGM_INSTANCE(norm_partials_kernel<true, igm::BFloat16>)
IGM_INSTANCE(norm_final_kernel)
IGM_INSTANCE(perturb_kernel<false, float>)
IGM_INSTANCE(perturb_kernel<false, double>)
IGM_INSTANCE(perturb_kernel<false, igm::BFloat16>)
IGM_INSTANCE(perturb_kernel<true, float>)
IGM_INSTANCE(perturb_kernel<true, double>)
IGM_INSTANCE(perturb_kernel<true, igm::BFloat16>)

}  // namespace igm
