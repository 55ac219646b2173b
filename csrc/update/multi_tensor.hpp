#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace igm {

// A run of elements of one tensor. A list of tensors becomes a list of chunks, the unit of work of all updates.
struct Chunk {
    int64_t tensor;
    int64_t begin;
    int64_t count;
};

// Cuts tensors into chunks of at most `chunk_elements`, in order. Empty tensors give no chunk. The cut depends on the
// sizes alone, never on the number of threads: sums per chunk, added in order, are the same bits on any machine.
inline std::vector<Chunk> make_chunks(const std::vector<int64_t>& sizes, int64_t chunk_elements) {
    std::vector<Chunk> chunks;
    for (size_t tensor = 0; tensor < sizes.size(); ++tensor) {
        for (int64_t begin = 0; begin < sizes[tensor]; begin += chunk_elements) {
            chunks.push_back({static_cast<int64_t>(tensor), begin, std::min(chunk_elements, sizes[tensor] - begin)});
        }
    }
    return chunks;
}

}  // namespace igm
