#include "bindings/tensors.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <utility>

#include "bindings/dlpack.h"
#include "bindings/ndarray.h"

namespace rnnfast {
namespace {

// The functions of a library, and the types whose objects are its tensors.
struct Library {
    dlpack::ExchangeApi api;
    std::array<PyTypeObject*, 2> types;
    PyObject* is_negated;
};

// Never freed, since another thread may be reading it. It owns references to its objects.
std::atomic<const Library*> library{nullptr};

// NumPy has no bfloat16. 'V' is its kind for types that other packages define.
constexpr char kBfloat16Kind = 'V';

constexpr struct {
    char kind;
    dlpack::TypeCode code;
} kKinds[] = {
    {'f', dlpack::kFloat},
    {'i', dlpack::kInt},
    {'b', dlpack::kBool},
    {kBfloat16Kind, dlpack::kBfloat},
};

// The data of smaller tensors lie behind their description, in one block. Not with sanitizers, which would
// not find writes past the ends of such data.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kFew = 0;
#else
constexpr size_t kFew = 4096;  // bytes
#endif

// The description of a tensor that this library makes. Data of less than kFew bytes lie behind it, in the
// same block of malloc, which has no fast way to give small aligned blocks.
struct OwnedTensor {
    dlpack::ManagedTensor managed;
    int64_t sizes[kMostAxes], strides[kMostAxes];
    bool is_apart;  // whether the data have a block of their own
    size_t bytes;   // the size of that block

    // Makes one with `room` bytes of data. `too_large`: see `allocate_bytes`.
    static OwnedTensor* make(size_t room, size_t too_large) {
        constexpr size_t kLine = 64;
        const bool is_apart = room >= kFew;
        std::unique_ptr<void, decltype(&std::free)> block(
            std::malloc(sizeof(OwnedTensor) + (is_apart ? 0 : room + kLine)), std::free);
        if (!block) throw std::bad_alloc();
        auto* const made = new (block.get()) OwnedTensor{};
        made->managed.manager = made;
        made->managed.deleter = free;
        made->is_apart = is_apart;
        void*& data = made->managed.tensor.data;
        if (is_apart) {
            const Block memory = allocate_bytes(room, too_large);
            data = memory.memory, made->bytes = memory.bytes;
        } else {
            const auto end = reinterpret_cast<uintptr_t>(made + 1);
            data = reinterpret_cast<char*>(made + 1) + (kLine - end % kLine) % kLine;
        }
        return static_cast<OwnedTensor*>(block.release());
    }

    static void free(dlpack::ManagedTensor* managed) {
        auto* const own = static_cast<OwnedTensor*>(managed->manager);
        if (own->is_apart) free_bytes(managed->tensor.data, own->bytes);
        std::free(own);
    }
};

bool take_tensors(const py::object& table, const py::type& tensor, const py::type& parameter,
                  py::function is_negated) {
    const auto* api = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(table.ptr(), dlpack::kCapsuleName));
    if (!api) throw py::error_already_set();
    while (api && api->version.major != dlpack::kMajorVersion) api = api->previous;
    if (!api || !api->tensor_from_object) return false;
    const auto held = [](const py::type& type) {
        return reinterpret_cast<PyTypeObject*>(py::type(type).release().ptr());
    };
    library.store(new Library{*api, {held(tensor), held(parameter)}, is_negated.release().ptr()},
                  std::memory_order_release);
    return true;
}

// The shape of an array. `swapped` is set if the array is contiguous once its first two axes are exchanged.
Shape shape_of(const Array& array) {
    Shape shape;
    for (int axis = 0; axis < array.axes; ++axis) shape.add(array.sizes[axis]);
    if (array.axes == 3 && !is_contiguous(array)) {
        Array other = array;
        std::swap(other.sizes[0], other.sizes[1]);
        std::swap(other.strides[0], other.strides[1]);
        shape.swapped = is_contiguous(other);
    }
    return shape;
}

// A new tensor in the shape of `tensor`, without values: float32, or bfloat16 if `half`. Returns None if
// `tensor` cannot be read.
py::object empty_like(const py::object& tensor, bool half) {
    Array like;
    if (!read_tensor(tensor.ptr(), like)) return py::none();
    const Shape shape = shape_of(like);
    return new_tensor(shape, half ? kBfloat16Kind : 'f', half ? 2 : 4).object;
}

// A copy of a tensor or an array, with the same order in memory. Returns None if `other` cannot be read, is
// an array of another dtype than float32 and float64, or is not contiguous even once its first two axes are
// exchanged.
py::object copy(const py::object& other) {
    Array from;
    if (!read_any(other.ptr(), true, from) || from.kind == '?') return py::none();
    const Shape shape = shape_of(from);
    if (!shape.swapped && !is_contiguous(from)) return py::none();
    const ptrdiff_t bytes = std::accumulate(from.sizes, from.sizes + from.axes, from.item,
                                            std::multiplies<ptrdiff_t>());
    const auto filled = [&](auto made) {
        if (bytes) std::memcpy(made.data, from.data, size_t(bytes));
        return std::move(made.object);
    };
    if (is_tensor(other.ptr())) return filled(new_tensor(shape, from.kind, size_t(from.item)));
#define DTYPE(name, type)                                      \
    if (from.kind == kKind<type> && from.item == sizeof(type)) \
        return filled(new_array<type>(shape));
#include "core/dtypes.inc"
#undef DTYPE
    return py::none();
}

}  // namespace

ptrdiff_t element_count(const Shape& shape, size_t item) {
    auto bytes = double(item);
    ptrdiff_t count = 1;
    for (int axis = 0; axis < shape.count; ++axis) {
        if (shape.sizes[axis]) bytes *= double(shape.sizes[axis]);
        if (bytes >= double(PTRDIFF_MAX)) throw py::value_error("array is too big");
        count *= shape.sizes[axis];
    }
    return count;
}

bool is_tensor(PyObject* object) {
    const Library* const known = library.load(std::memory_order_acquire);
    return known && std::count(known->types.begin(), known->types.end(), Py_TYPE(object));
}

bool read_tensor(PyObject* object, Array& array) {
    if (!is_tensor(object)) return false;
    dlpack::Tensor tensor;
    if (library.load(std::memory_order_acquire)->api.tensor_from_object(object, &tensor)) {
        PyErr_Clear();  // it has no memory, e.g. a sparse tensor
        return false;
    }
    if (tensor.device.type != dlpack::kCpu || tensor.ndim > kMostAxes || tensor.dtype.lanes != 1)
        return false;
    array.data = static_cast<const char*>(tensor.data) + tensor.byte_offset;
    array.axes = tensor.ndim;
    array.item = tensor.dtype.bits / 8;
    array.kind = '?';
    for (const auto& known : kKinds)
        if (known.code == tensor.dtype.code) array.kind = known.kind;
    Py_intptr_t packed = array.item;
    for (int axis = tensor.ndim; axis-- > 0;) {
        array.sizes[axis] = tensor.shape[axis];
        array.strides[axis] = tensor.strides ? tensor.strides[axis] * array.item : packed;
        packed *= tensor.shape[axis];
    }
    return tensor.data || packed == 0;  // in torch, a tensor of zeros may have no memory
}

bool is_negated(PyObject* tensor) {
    const Library* const known = library.load(std::memory_order_acquire);
    const auto answer =
        py::reinterpret_steal<py::object>(PyObject_CallOneArg(known->is_negated, tensor));
    if (!answer) throw py::error_already_set();
    return answer.ptr() != Py_False;
}

NewTensor new_tensor(const Shape& shape, char kind, size_t item, size_t too_large) {
    const size_t room = size_t(element_count(shape, item)) * item;
    OwnedTensor* const own = OwnedTensor::make(room, too_large);
    int64_t packed = 1;
    for (int axis = shape.count; axis-- > 0;) {
        own->sizes[axis] = shape.sizes[axis];
        own->strides[axis] = packed;
        packed *= shape.sizes[axis];
    }
    if (shape.swapped) {
        own->strides[0] = own->strides[1];
        own->strides[1] = own->strides[0] * own->sizes[0];
    }
    const auto* const known = std::find_if(std::begin(kKinds), std::end(kKinds),
                                           [kind](const auto& k) { return k.kind == kind; });
    own->managed.version = {dlpack::kMajorVersion, 0};
    void* const data = own->managed.tensor.data;
    own->managed.tensor = {data,
                           {dlpack::kCpu, 0},
                           shape.count,
                           {known->code, uint8_t(8 * item), 1},
                           own->sizes,
                           own->strides,
                           0};
    void* object = nullptr;
    const auto make = library.load(std::memory_order_acquire)->api.object_from_managed;
    if (make(&own->managed, &object)) throw py::error_already_set();
    return {py::reinterpret_steal<py::object>(static_cast<PyObject*>(object)), data};
}

void add_tensors(py::module_& module) {
    module.def("take_tensors", &take_tensors);
    module.def("empty_like", &empty_like);
    module.def("copy", &copy);
}

}  // namespace rnnfast
