/* The functions of include/rnnfast.h as a table, for callers that find them at run time. The Python module
 * offers its table as the capsule `c_functions`, since nothing is linked against that module. */
#ifndef RNNFAST_FUNCTIONS_H
#define RNNFAST_FUNCTIONS_H

#include "include/rnnfast.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Passes with fewer multiplications than this keep Python's GIL. Such passes take at most about 5 us with
 * vectors of 512 bits. To release the GIL and take it back takes 0.1 us, but far longer if another thread
 * has taken it meanwhile. */
#define RNNFAST_RELEASING_PAYS (1 << 17)

typedef struct rnnfast_functions {
    rnnfast_stream* (*create)(const rnnfast_config*, const rnnfast_layer*);
    rnnfast_stream* (*clone)(const rnnfast_stream*);
    void (*destroy)(rnnfast_stream*);
    void (*step)(rnnfast_stream*, const void*, void*);
    void (*run)(rnnfast_stream*, int64_t, const void*, void*);
    void (*get_state)(const rnnfast_stream*, void*, void*);
    void (*set_state)(rnnfast_stream*, const void*, const void*);
    void (*reset)(rnnfast_stream*, const uint8_t*);
    double (*step_work)(const rnnfast_stream*);
    size_t (*weights_bytes)(const rnnfast_stream*);
    const char* (*error)(void);
} rnnfast_functions;

extern const rnnfast_functions rnnfast_c_functions;

#ifdef __cplusplus
}
#endif
#endif
