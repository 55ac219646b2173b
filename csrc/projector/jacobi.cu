#include "common/instances.cuh"
#include "projector/jacobi.cuh"

namespace igm {

IGM_INSTANCE(jacobi_kernel)

}  // namespace igm
