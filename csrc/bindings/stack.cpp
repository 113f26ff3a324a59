// The types Stack and Run of rnnfast._native; rnnfast/_native.pyi describes them.
#include "bindings/stack.h"

#include <pybind11/stl.h>
#include <structmember.h>

#include <cstring>

#include "bindings/returned.h"
#include "bindings/stack_steps.h"
#include "bindings/stack_training.h"

namespace rnnfast {
namespace {

template <class Impl>
struct Object {
    PyObject_HEAD PyObject* weak_references;
    const Impl* impl;
};

template <class Impl>
const Impl& impl_of(PyObject* self) {
    return *reinterpret_cast<Object<Impl>*>(self)->impl;
}

template <class Impl>
py::object new_object(PyObject* type, std::unique_ptr<const Impl> impl) {
    auto* const python_type = reinterpret_cast<PyTypeObject*>(type);
    py::object made = owned_or_throw(python_type->tp_alloc(python_type, 0));
    reinterpret_cast<Object<Impl>*>(made.ptr())->impl = impl.release();
    return made;
}

template <class Impl>
void deallocate(PyObject* self) {
    auto* const object = reinterpret_cast<Object<Impl>*>(self);
    if (object->weak_references) PyObject_ClearWeakRefs(self);
    delete object->impl;
    PyTypeObject* const type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

bool takes(const char* method, Py_ssize_t given, bool right) {
    if (!right) PyErr_Format(PyExc_TypeError, "%s: got %zd arguments", method, given);
    return right;
}

PyObject* infer(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (!takes("infer", count, count == 2 || count == 5 || count == 6)) return nullptr;
    return returned([&] { return impl_of<Stack>(self).infer(args, count); });
}

PyObject* infer_at(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (!takes("infer_at", count, count == 6)) return nullptr;
    return returned([&] { return impl_of<Stack>(self).infer_at(args); });
}

PyObject* record(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (!takes("record", count, count == 2 || count == 5)) return nullptr;
    return returned([&] { return impl_of<Stack>(self).record(self, args, count); });
}

PyObject* forward(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (!takes("forward", count, count == 4)) return nullptr;
    return returned([&] { return impl_of<Stack>(self).forward(args); });
}

PyObject* forward_at(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (!takes("forward_at", count, count == 6)) return nullptr;
    return returned([&] { return impl_of<Stack>(self).forward_at(args); });
}

PyObject* backward(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (!takes("backward", count, count == 9)) return nullptr;
    return returned([&] { return impl_of<Stack>(self).backward(args); });
}

PyObject* step_backward(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (!takes("step_backward", count, count == 8)) return nullptr;
    return returned([&] { return impl_of<Stack>(self).step_backward(args); });
}

PyObject* steps_backward(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (!takes("steps_backward", count, count == 3)) return nullptr;
    return returned([&] { return impl_of<Stack>(self).steps_backward(args); });
}

PyObject* run_backward(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (!takes("backward", count, count == 2)) return nullptr;
    return returned([&] { return impl_of<Run>(self).backward(args[0], args[1]); });
}

// Adds a type whose objects own an Impl. Only this file can make such objects.
template <class Impl>
py::object add_type(py::module_& module, const char* name, PyMethodDef* methods) {
    static PyMemberDef members[] = {{"__weaklistoffset__", T_PYSSIZET,
                                     offsetof(Object<Impl>, weak_references), READONLY, nullptr},
                                    {nullptr, 0, 0, 0, nullptr}};
    PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(&deallocate<Impl>)},
                           {Py_tp_methods, methods},
                           {Py_tp_members, members},
                           {0, nullptr}};
    PyType_Spec spec = {name, int(sizeof(Object<Impl>)), 0,
                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    py::object type = owned_or_throw(PyType_FromModuleAndSpec(module.ptr(), &spec, nullptr));
    module.add_object(std::strrchr(name, '.') + 1, type);
    return type;
}

[[noreturn]] void refuse(const char* what) { throw py::value_error(what); }

// Checks that the layers fit together. The code that runs them relies on it.
template <class T>
void check(const Layers<T>& layers, const std::vector<Names>& names, const Form& form) {
    const int jobs = layers.jobs(), directions = layers.directions;
    if (directions != 1 && directions != 2) refuse("directions: expected 1 or 2, got another");
    if (jobs == 0 || jobs % directions || (form.cell && jobs != 1))
        refuse("packs: expected one for each layer and direction, got another number");
    if (form.ragged && (form.cell || form.batch_first))
        refuse("ragged: expected a layer whose steps come first, got another");
    if (int(names.size()) != jobs) refuse("names: expected those of each pack, got another number");
    for (int k = 0; k < jobs; ++k) {
        if (layers.packs[size_t(k)]->borrowed() != layers.packs[0]->borrowed())
            refuse("packs: expected all of them borrowed or none, got some");
        if (layers.packs[size_t(k)]->format() != layers.packs[0]->format())
            refuse("packs: expected all of them in one format, got several");
        const Sizes& sizes = layers.packs[size_t(k)]->sizes();
        const ptrdiff_t input = k < directions ? layers.input() : layers.output();
        const Sizes& first = layers.packs[0]->sizes();
        if (&layers.packs[size_t(k)]->kernels() != &layers.kernels() || sizes.input != input ||
            sizes.hidden != first.hidden || sizes.projection != first.projection)
            refuse("packs: expected layers that fit on one another, got others");
        const Names& own = names[size_t(k)];
        const bool right = !own[0].is_none() && !own[1].is_none() &&
                           own[2].is_none() == own[3].is_none() &&
                           own[4].is_none() == (sizes.projection == 0);
        if (!right) refuse("names: expected one for each parameter of the pack, got others");
    }
}

template <class T>
std::unique_ptr<const Stack> stack_of(const std::vector<const Packed*>& packs, int directions,
                                      std::vector<Names> names, const Form& form,
                                      const py::object& run_type) {
    Layers<T> layers{{}, directions, !form.cell};
    for (const Packed* pack : packs) {
        auto* const own = dynamic_cast<const PackedOf<T>*>(pack);
        if (!own) return nullptr;
        layers.packs.push_back(own->weights());
    }
    check(layers, names, form);
    return std::make_unique<StackOf<T>>(std::move(layers), std::move(names), form, run_type);
}

}  // namespace

py::object new_run(const Stack& stack, std::unique_ptr<const Run> run) {
    return new_object(stack.run_type.ptr(), std::move(run));
}

void add_stack(py::module_& module) {
    static PyMethodDef of_stack[] = {fast_method("infer", &infer),
                                     fast_method("infer_at", &infer_at),
                                     fast_method("record", &record),
                                     fast_method("forward", &forward),
                                     fast_method("forward_at", &forward_at),
                                     fast_method("backward", &backward),
                                     fast_method("step_backward", &step_backward),
                                     fast_method("steps_backward", &steps_backward),
                                     {}};
    static PyMethodDef of_run[] = {fast_method("backward", &run_backward), {}};
    const py::object stack_type = add_type<Stack>(module, "rnnfast._native.Stack", of_stack);
    const py::object run_type = add_type<Run>(module, "rnnfast._native.Run", of_run);
    module.def(
        "stack",
        [stack_type, run_type](const std::vector<const Packed*>& packs, std::vector<Names> names,
                               int directions, bool cell, bool batch_first, bool tensors,
                               bool ragged) {
            const Form form{cell, batch_first, ragged, tensors};
            std::unique_ptr<const Stack> made;
            for (const Packed* pack : packs)
                if (!pack)
                    throw py::type_error("packs: expected those that pack returns, got None");
#define DTYPE(name, type) \
    if (!made) made = stack_of<type>(packs, directions, names, form, run_type);
#include "core/dtypes.inc"
#undef DTYPE
            if (!made) refuse("packs: expected packs of one dtype, got several");
            return new_object(stack_type.ptr(), std::move(made));
        },
        py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg() = false);
}

}  // namespace rnnfast
