"""The C functions of include/rnnfast.h for Cython; that header documents them.

To use them, compile a module with the flags that `python -m rnnfast cflags` prints, and link it
with the flags that `python -m rnnfast libs` prints.
"""
from libc.stdint cimport int64_t, uint8_t


cdef extern from "rnnfast.h" nogil:
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

    rnnfast_stream* rnnfast_create(const rnnfast_config* config, const rnnfast_layer* layers)
    rnnfast_stream* rnnfast_open(const char* path, rnnfast_config* config)
    rnnfast_stream* rnnfast_clone(const rnnfast_stream* stream)
    void rnnfast_destroy(rnnfast_stream* stream)
    void rnnfast_step(rnnfast_stream* stream, const void* x, void* y)
    void rnnfast_run(rnnfast_stream* stream, int64_t steps, const void* x, void* y)
    void rnnfast_get_state(const rnnfast_stream* stream, void* h, void* c)
    void rnnfast_set_state(rnnfast_stream* stream, const void* h, const void* c)
    void rnnfast_reset(rnnfast_stream* stream, const uint8_t* rows)
    double rnnfast_step_work(const rnnfast_stream* stream)
    size_t rnnfast_weights_bytes(const rnnfast_stream* stream)
    const char* rnnfast_error()
    const char* rnnfast_isa()
