#include "common/instances.cuh"
#include "covariance/mirror.cuh"

namespace igm {

IGM_INSTANCE(mirror_kernel<float>)
IGM_INSTANCE(mirror_kernel<double>)

}  // namespace igm
