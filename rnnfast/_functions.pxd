# The C functions of csrc/api/functions.h; csrc/include/rnnfast.h says what they do.
from libc.stdint cimport int64_t, uint8_t


cdef extern from "api/functions.h":
    ctypedef struct rnnfast_stream:
        pass

    ctypedef struct rnnfast_config:
        const char* cell
        const char* dtype
        const char* weights
        int64_t input_size
        int64_t hidden_size
        int64_t proj_size
        int64_t num_layers
        int64_t batch_size

    ctypedef struct rnnfast_layer:
        const void* weight_ih
        const void* weight_hh
        const void* bias_ih
        const void* bias_hh
        const void* weight_hr

    ctypedef struct rnnfast_functions:
        rnnfast_stream* (*create)(const rnnfast_config*, const rnnfast_layer*) noexcept nogil
        rnnfast_stream* (*clone)(const rnnfast_stream*) noexcept nogil
        void (*destroy)(rnnfast_stream*) noexcept nogil
        void (*step)(rnnfast_stream*, const void*, void*) noexcept nogil
        void (*run)(rnnfast_stream*, int64_t, const void*, void*) noexcept nogil
        void (*get_state)(const rnnfast_stream*, void*, void*) noexcept nogil
        void (*set_state)(rnnfast_stream*, const void*, const void*) noexcept nogil
        void (*reset)(rnnfast_stream*, const uint8_t*) noexcept nogil
        double (*step_work)(const rnnfast_stream*) noexcept nogil
        const char* (*error)() noexcept nogil
