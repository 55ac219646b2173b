// Runs perturb_cuda(), host code and kernels, on a CPU. Reads a problem from stdin and writes the results to stdout;
// tests/emulation/test_perturb_emulation.py is the other side.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "update/perturb.cu"

namespace {

template <class T>
T read() {
    T value;
    if (std::fread(&value, sizeof(T), 1, stdin) != 1) {
        std::abort();
    }
    return value;
}

// Exactly as long as it has to be, so that AddressSanitizer sees every access beyond; `offset` spoils the alignment.
struct Buffer {
    std::vector<char> bytes;
    size_t offset;

    Buffer(size_t size, size_t skip) : bytes(size + skip, static_cast<char>(0xff)), offset(skip) {
        bytes.shrink_to_fit();
    }
    uintptr_t address() { return reinterpret_cast<uintptr_t>(bytes.data()) + offset; }
    size_t size() const { return bytes.size() - offset; }
    void fill() {
        if (size() > 0 && std::fread(bytes.data() + offset, 1, size(), stdin) != size()) {
            std::abort();
        }
    }
    void dump() {
        if (size() > 0) {
            std::fwrite(bytes.data() + offset, 1, size(), stdout);
        }
    }
};

}  // namespace

int main() {
    const int dtype = static_cast<int>(read<int64_t>());
    const int64_t element_bytes = read<int64_t>();
    const bool adaptive = read<int64_t>() != 0;
    const bool per_tensor = read<int64_t>() != 0;
    igm::emulation::order.seed(static_cast<unsigned>(read<int64_t>()));
    const int64_t skip = read<int64_t>() * element_bytes;
    std::vector<int64_t> sizes(read<int64_t>());
    for (int64_t& size : sizes) {
        size = read<int64_t>();
    }
    const double rho = read<double>();

    std::vector<Buffer> params, backups, grads;
    igm::PerturbTensors tensors;
    tensors.sizes = sizes;
    for (int64_t size : sizes) {
        for (std::vector<Buffer>* list : {&params, &backups, &grads}) {
            list->emplace_back(size * element_bytes, skip);
        }
        params.back().fill();
        grads.back().fill();
        tensors.params.push_back(params.back().address());
        tensors.backups.push_back(backups.back().address());
        tensors.grads.push_back(grads.back().address());
    }
    const igm::NormScope scope = per_tensor ? igm::NormScope::kTensor : igm::NormScope::kGlobal;
    std::vector<float> norms(per_tensor ? sizes.size() : 1, -1.0f);
    std::vector<double> workspace(igm::perturb_plan(sizes, scope, {}).workspace_doubles, NAN);
    igm::perturb_cuda(tensors, static_cast<igm::DType>(dtype), {rho, scope, adaptive}, norms.data(), workspace.data(),
                      0, nullptr);
    for (size_t i = 0; i < sizes.size(); ++i) {
        params[i].dump();
        backups[i].dump();
    }
    std::fwrite(norms.data(), sizeof(float), norms.size(), stdout);
    return 0;
}
