#include "common/instances.cuh"
#include "projector/inspect_symmetric.cuh"

namespace igm {

IGM_INSTANCE(inspect_tiles_kernel<float>)
IGM_INSTANCE(inspect_tiles_kernel<double>)
IGM_INSTANCE(inspect_final_kernel)

}  // namespace igm
