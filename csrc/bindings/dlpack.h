// The part of DLPack's binary interface, version 1, that tensors.cpp uses. A library that exchanges
// tensors this way has a table of functions: the attribute `__dlpack_c_exchange_api__` of its tensor
// type, which is a capsule.
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

// A tensor that owns its memory. `deleter` frees both the memory and this struct.
struct ManagedTensor {
    Version version;
    void* manager;
    void (*deleter)(ManagedTensor*);
    uint64_t flags;
    Tensor tensor;
};

// The functions return 0, or -1 with a Python exception set.
struct ExchangeApi {
    Version version;
    ExchangeApi* previous;  // the table of an older major version; null: none
    void* allocate;
    void* managed_from_object;
    int (*object_from_managed)(ManagedTensor*, void** object);  // takes ownership
    // The tensor borrows from `object`, and is valid while that lives unchanged. Null: not offered.
    int (*tensor_from_object)(void* object, Tensor*);
    void* current_stream;
};

}  // namespace rnnfast::dlpack
