/* rnnfast in C: recurrent networks that run step by step and hold their state.
 *
 * A stream is a stack of layers in one direction, with its own copy of the weights. It is created
 * once and then stepped. rnnfast_step, rnnfast_run, rnnfast_reset, rnnfast_get_state and
 * rnnfast_set_state allocate nothing, take no lock, make no system call and always succeed, so they
 * can run in a real-time thread. There is one exception: on a CPU with AMX, the first step that a
 * thread makes with several rows in low precision has the operating system allocate room for the
 * tile registers. Call the other functions before and after. On a CPU with AMX, creating the first
 * stream in low precision asks the operating system to let the process use the tile registers.
 *
 * Threads: different threads may use different streams at the same time, also if these are copies
 * of one another. Only one thread at a time may use a given stream. A stream runs on the thread
 * that calls it.
 *
 * Floating point: a step treats denormals as zero and rounds to nearest, whatever the caller's
 * floating-point environment, which it restores afterwards. NaN and infinity go through. On one
 * machine and instruction set a row's results have the same bits whatever the batch size, and the
 * same bits as those of rnnfast in Python over the whole sequence.
 *
 * Letters: L layers, B batch, I input size, H hidden size, W width of h (H, or the projection's
 * size), G gates (LSTM 4: i f g o; GRU 3: r z n; Elman RNN 1). Arrays are C-contiguous, of the
 * stream's dtype, and aligned to their elements. Arrays in one call share no memory, except that x
 * and y of a step or run may be the same array if I = W.
 *
 * A pointer to a stream or an array may be NULL only where a comment says so. Apart from
 * rnnfast_create and rnnfast_open, no function checks its pointers, and none checks the size of an
 * array. */
#ifndef RNNFAST_H
#define RNNFAST_H

#include <stddef.h>
#include <stdint.h>

/* The build of the library may define it in another way. */
#ifndef RNNFAST_API
#if defined(_WIN32)
#define RNNFAST_API __declspec(dllimport)
#else
#define RNNFAST_API __attribute__((visibility("default")))
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rnnfast_stream rnnfast_stream;

/* What a stream computes. rnnfast_create reads the strings and does not keep them. */
typedef struct rnnfast_config {
    const char* cell;    /* "rnn_tanh", "rnn_relu", "gru", "gru_reset_before" or "lstm" */
    const char* dtype;   /* "float32" or "float64", the dtype of all arrays */
    const char* weights; /* the format of the weights; NULL: the dtype; see below */
    int64_t input_size;  /* I of the first layer, at least 0; for layers above it I is W */
    int64_t hidden_size; /* H, at least 1 */
    int64_t proj_size;   /* the projection's size, less than H, for an LSTM; 0: no projection */
    int64_t num_layers;  /* L, at least 1 */
    int64_t batch_size;  /* B, at least 1 */
} rnnfast_config;

/* A stream of dtype "float32" can keep its weights in low precision. Only the products of weight
 * matrices are then rounded, with x, h and, if there is a projection, the h before it. All arrays,
 * biases and states, and the rest of the computation stay float32.
 *
 * "bfloat16": weights and operands are rounded to nearest even; products are summed in float32.
 *
 * "int8": each row of a weight matrix is rounded to integers in units of its max|w| / 127. At each
 * step each row of an operand is rounded in the same way, in a unit of its own. Products are summed
 * as integers. NaN or infinity in a row of x or h makes all of that row's results NaN. I and H are
 * at most 131072. */

/* The parameters of one layer, in torch's layout and with torch's names (`weight_ih_l0` etc.). */
typedef struct rnnfast_layer {
    const void* weight_ih; /* (G*H, I) */
    const void* weight_hh; /* (G*H, W) */
    const void* bias_ih;   /* (G*H), or NULL: no biases. All layers have both biases, or none has */
    const void* bias_hh;   /* (G*H), or NULL */
    const void* weight_hr; /* (W, H) for an LSTM with projection; else NULL */
} rnnfast_layer;

/* Creates a stream whose state is zero; free it with rnnfast_destroy. Returns NULL if the
 * configuration is invalid, memory runs out, or rnnfast_isa() returns NULL; rnnfast_error() then
 * says why. `layers` has num_layers entries, the lowest layer first. They and their arrays are read
 * and not kept. */
RNNFAST_API rnnfast_stream* rnnfast_create(const rnnfast_config* config,
                                           const rnnfast_layer* layers);

/* Creates a stream, like rnnfast_create, from a layer or cell that Python's `layer.save` wrote: a
 * safetensors file with the options in its metadata. `path` is a path that fopen accepts. Of
 * `config`, the function reads `batch_size` and `weights`, where NULL selects the precision of the
 * saved layer, as in Python's `layer.stream()`. If it returns a stream, it has filled in the other
 * fields, and the name of that precision in place of a NULL; these strings are valid for ever.
 *
 * Returns NULL also if the file cannot be read, is damaged, or has a bidirectional layer. Whatever
 * the file contains, no more memory is allocated than a few times its size. A stream has no
 * dropout, so the option `dropout` is ignored. */
RNNFAST_API rnnfast_stream* rnnfast_open(const char* path, rnnfast_config* config);

/* Creates a copy of a stream, which shares its weights and starts from its present state. Either
 * may be destroyed before the other. Returns NULL if memory runs out, and then rnnfast_error() says
 * so. */
RNNFAST_API rnnfast_stream* rnnfast_clone(const rnnfast_stream* stream);

/* Frees a stream. If it is NULL, this does nothing. */
RNNFAST_API void rnnfast_destroy(rnnfast_stream* stream);

/* Runs one step: reads x (B, I) and writes y (B, W), which is h of the highest layer. */
RNNFAST_API void rnnfast_step(rnnfast_stream* stream, const void* x, void* y);

/* Runs `steps` steps, at least 0: reads x (steps, B, I) and writes y (steps, B, W). */
RNNFAST_API void rnnfast_run(rnnfast_stream* stream, int64_t steps, const void* x, void* y);

/* Copy the state out of a stream, or into it: h (L, B, W) and, for an LSTM, c (L, B, H), the lowest
 * layer first. For other cells c is not used and may be NULL. rnnfast_set_state sets h or c to
 * zeros if it is NULL. */
RNNFAST_API void rnnfast_get_state(const rnnfast_stream* stream, void* h, void* c);
RNNFAST_API void rnnfast_set_state(rnnfast_stream* stream, const void* h, const void* c);

/* Sets the state in all layers to zero for the rows whose entry in `rows` (B) is not 0. If `rows`
 * is NULL, it does so for all rows. */
RNNFAST_API void rnnfast_reset(rnnfast_stream* stream, const uint8_t* rows);

/* The cost of a step: the number of multiplications in the dtype that take about as long as its
 * products. */
RNNFAST_API double rnnfast_step_work(const rnnfast_stream* stream);

/* The size in bytes of a stream's packed weights, which its copies share. */
RNNFAST_API size_t rnnfast_weights_bytes(const rnnfast_stream* stream);

/* The reason why the last call on this thread that returned NULL failed, as one line of text. For a
 * wrong argument it reads "name: expected ..., got ...". It is empty if no call has failed. The
 * text is valid until the next call on this thread that returns NULL. */
RNNFAST_API const char* rnnfast_error(void);

/* The instruction set in use, for example "avx2": the one that the environment variable RNNFAST_ISA
 * names, or else the best that this CPU has. Returns NULL if RNNFAST_ISA names one that cannot be
 * used, or if RNNFAST_AMX is neither 0 nor 1, and then rnnfast_error() says why. The first stream
 * or the first call of this function makes the choice. The string is valid for ever. */
RNNFAST_API const char* rnnfast_isa(void);

#ifdef __cplusplus
}
#endif
#endif
