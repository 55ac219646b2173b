#pragma once

// 16 bytes of elements in one access where the addresses allow it, the same elements one by one where they do not.

#include "common/device.cuh"

namespace igm {

template <class T>
struct alignas(16) Pack {
    static constexpr int kElements = 16 / static_cast<int>(sizeof(T));
    T elements[kElements];
};

template <class T>
IGM_DEVICE bool is_aligned(const T* address) {
    return reinterpret_cast<unsigned long long>(address) % 16 == 0;
}

template <bool kAligned, class T>
IGM_DEVICE Pack<T> load_pack(const T* address) {
    if constexpr (kAligned) {
        return bit_cast<Pack<T>>(load_128(address));
    } else {
        Pack<T> pack;
        for (int i = 0; i < Pack<T>::kElements; ++i) {
            pack.elements[i] = address[i];
        }
        return pack;
    }
}

template <bool kAligned, class T>
IGM_DEVICE void store_pack(T* address, const Pack<T>& pack) {
    if constexpr (kAligned) {
        store_128(address, bit_cast<Vector128>(pack));
    } else {
        for (int i = 0; i < Pack<T>::kElements; ++i) {
            address[i] = pack.elements[i];
        }
    }
}

}  // namespace igm
