#include "common/instances.cuh"
#include "covariance/moments.cuh"

namespace igm {

IGM_INSTANCE(location_moments_kernel)
IGM_INSTANCE(tap_moments_kernel<float>)
IGM_INSTANCE(tap_moments_kernel<double>)
IGM_INSTANCE(trace_moments_kernel<float>)
IGM_INSTANCE(trace_moments_kernel<double>)

}  // namespace igm
