#pragma once

// What mirror_kernel is given; plain data, no standard headers.

namespace igm {

constexpr int kMirrorTile = 32;
constexpr int kMirrorThreads = 256;
constexpr int kMirrorResident = 4;

struct Mirror {
    void* matrices;  // [count, dim, dim]
    int dim;
    int tiles;  // on and below the diagonal of one
};

}  // namespace igm
