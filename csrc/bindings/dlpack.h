// The part of DLPack's binary interface, version 1, that tensors.cpp uses. Libraries that exchange
// tensors this way give a table of functions on their tensors' type, as the capsule
// `__dlpack_c_exchange_api__`. The names are DLPack's.
#pragma once

#include <cstdint>

namespace rnnfast::dlpack {

constexpr uint32_t kMajorVersion = 1;
constexpr char kCapsuleName[] = "dlpack_exchange_api";

struct Version {
    uint32_t major, minor;
};

constexpr int32_t kCpu = 1;
struct Device {
    int32_t type, id;
};

enum TypeCode : uint8_t { kInt = 0, kFloat = 2, kBfloat = 4, kBool = 6 };
struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements; null: C-contiguous
    uint64_t byte_offset;
};

// A tensor whose memory goes when `deleter` is called, with itself.
struct ManagedTensor {
    Version version;
    void* manager;
    void (*deleter)(ManagedTensor*);
    uint64_t flags;
    Tensor tensor;
};

// Functions return 0, or -1 with a Python exception set.
struct ExchangeApi {
    Version version;
    ExchangeApi* previous;  // of an older major version; null: none
    void* allocate;
    void* managed_from_object;
    int (*object_from_managed)(ManagedTensor*, void** object);  // takes the tensor
    // Borrowed from `object`, while it lives and is not changed. Null: not offered.
    int (*tensor_from_object)(void* object, Tensor*);
    void* current_stream;
};

}  // namespace rnnfast::dlpack
