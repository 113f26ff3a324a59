# The table of the C functions that rnnfast._native offers: csrc/api/functions.h.
from libc.stdint cimport int64_t, uint8_t

from rnnfast.c cimport rnnfast_config, rnnfast_layer, rnnfast_stream


cdef extern from "api/functions.h":
    int RNNFAST_RELEASING_PAYS
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
        size_t (*weights_bytes)(const rnnfast_stream*) noexcept nogil
        const char* (*error)() noexcept nogil
