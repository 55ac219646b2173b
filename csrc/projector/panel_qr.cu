#include "common/instances.cuh"
#include "projector/panel_qr.cuh"

namespace igm {

IGM_INSTANCE(panel_gram_kernel<1, float>)
IGM_INSTANCE(panel_gram_kernel<1, double>)
IGM_INSTANCE(panel_gram_kernel<4, float>)
IGM_INSTANCE(panel_gram_kernel<4, double>)
IGM_INSTANCE(panel_factor_kernel<float>)
IGM_INSTANCE(panel_factor_kernel<double>)
IGM_INSTANCE(panel_multiply_kernel<1, float>)
IGM_INSTANCE(panel_multiply_kernel<1, double>)
IGM_INSTANCE(panel_multiply_kernel<4, float>)
IGM_INSTANCE(panel_multiply_kernel<4, double>)

}  // namespace igm
