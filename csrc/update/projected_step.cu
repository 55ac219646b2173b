#include "common/instances.cuh"
#include "update/projected_step.cuh"

namespace igm {

IGM_INSTANCE(step_chunks_kernel<float, igm::Sgd<float, false>>)
IGM_INSTANCE(step_chunks_kernel<float, igm::Sgd<float, true>>)
IGM_INSTANCE(step_chunks_kernel<float, igm::Adam<float>>)
IGM_INSTANCE(step_chunks_kernel<double, igm::Sgd<double, false>>)
IGM_INSTANCE(step_chunks_kernel<double, igm::Sgd<double, true>>)
IGM_INSTANCE(step_chunks_kernel<double, igm::Adam<double>>)
IGM_INSTANCE(step_chunks_kernel<igm::BFloat16, igm::Sgd<float, false>>)
IGM_INSTANCE(step_chunks_kernel<igm::BFloat16, igm::Sgd<float, true>>)
IGM_INSTANCE(step_chunks_kernel<igm::BFloat16, igm::Adam<float>>)
IGM_INSTANCE(step_tiles_kernel<float, igm::Sgd<float, false>, igm::UnitTf32x3>)
IGM_INSTANCE(step_tiles_kernel<float, igm::Sgd<float, true>, igm::UnitTf32x3>)
IGM_INSTANCE(step_tiles_kernel<float, igm::Adam<float>, igm::UnitTf32x3>)
IGM_INSTANCE(step_tiles_kernel<float, igm::Sgd<float, false>, igm::UnitPlain<float>>)
IGM_INSTANCE(step_tiles_kernel<float, igm::Sgd<float, true>, igm::UnitPlain<float>>)
IGM_INSTANCE(step_tiles_kernel<float, igm::Adam<float>, igm::UnitPlain<float>>)
IGM_INSTANCE(step_tiles_kernel<double, igm::Sgd<double, false>, igm::UnitPlain<double>>)
IGM_INSTANCE(step_tiles_kernel<double, igm::Sgd<double, true>, igm::UnitPlain<double>>)
IGM_INSTANCE(step_tiles_kernel<double, igm::Adam<double>, igm::UnitPlain<double>>)
IGM_INSTANCE(step_tiles_kernel<igm::BFloat16, igm::Sgd<float, false>, igm::UnitTf32x3>)
IGM_INSTANCE(step_tiles_kernel<igm::BFloat16, igm::Sgd<float, true>, igm::UnitTf32x3>)
IGM_INSTANCE(step_tiles_kernel<igm::BFloat16, igm::Adam<float>, igm::UnitTf32x3>)
IGM_INSTANCE(step_tiles_kernel<igm::BFloat16, igm::Sgd<float, false>, igm::UnitPlain<float>>)
IGM_INSTANCE(step_tiles_kernel<igm::BFloat16, igm::Sgd<float, true>, igm::UnitPlain<float>>)
IGM_INSTANCE(step_tiles_kernel<igm::BFloat16, igm::Adam<float>, igm::UnitPlain<float>>)

}  // namespace igm
