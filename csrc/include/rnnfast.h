/* rnnfast in C: recurrent networks step by step, with all state inside.
 *
 * A stream is a stack of layers in one direction, with its own copy of the weights. It is made once
 * and then stepped: rnnfast_step, rnnfast_run, rnnfast_reset and the state's functions allocate
 * nothing, take no lock, make no system call and always succeed, so that they can run in a
 * real-time thread. (With several rows in low precision, on a CPU with AMX, a thread's first step
 * has the operating system make room for its tile registers.) The others are for before and after;
 * on such a CPU, the first stream in low precision asks the system to let the process use them.
 *
 * Threads: different streams may be used at the same time from different threads, copies of one
 * stream among them; one stream, by one thread at a time. A stream runs on the thread that calls.
 *
 * Floating point: a step computes with denormals as zero and rounds to nearest, whatever the
 * caller's environment, which is afterwards as it was. NaN and infinity go through. On one machine
 * and instruction set a row's results have the same bits in batches of any size, and are those of
 * rnnfast in Python over the whole sequence.
 *
 * Letters: L layers, B batch, I input, H hidden, W width of h (H, or the projection's size), G
 * gates (LSTM 4: i f g o; GRU 3: r z n; Elman RNN 1). Arrays are C-contiguous, of the stream's
 * dtype, and aligned to their items. Where two of them are given they share no memory, but for a
 * step's or a run's x and y, which may be the same array where I = W.
 *
 * Where a stream or an array is asked for, NULL is allowed only where it says so; neither that nor
 * an array's size is checked after rnnfast_create. */
#ifndef RNNFAST_H
#define RNNFAST_H

#include <stddef.h>
#include <stdint.h>

/* The build of the library may say otherwise. */
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

/* What a stream computes. Its strings are read by rnnfast_create and not kept. */
typedef struct rnnfast_config {
    const char* cell;    /* "rnn_tanh", "rnn_relu", "gru", "gru_reset_before" or "lstm" */
    const char* dtype;   /* "float32" or "float64": of all arrays */
    const char* weights; /* how they are kept: NULL or the dtype, as they are; see below */
    int64_t input_size;  /* I of the first layer, 0 or more; those above read W */
    int64_t hidden_size; /* H */
    int64_t proj_size;   /* of an LSTM with projection, below H; 0: none */
    int64_t num_layers;  /* L */
    int64_t batch_size;  /* B */
} rnnfast_config;

/* Weights of float32 layers in low precision; all arrays are float32, and so are biases, states and
 * all but the products over x, h and, with a projection, h before it:
 *
 * "bfloat16": weights and operands are rounded to nearest even; the products add up in float32.
 *
 * "int8": each row of a weight matrix is kept in units of its max|w| / 127, and each row of an operand
 * in those of its own at each step; their products add up as integers. NaN or infinity in a row of x
 * or h makes all of that row's results NaN. I, H: at most 131072. */

/* The parameters of a layer, in torch's layout and names: `weight_ih_l0` and so on. */
typedef struct rnnfast_layer {
    const void* weight_ih; /* (G*H, I) */
    const void* weight_hh; /* (G*H, W) */
    const void* bias_ih;   /* (G*H)  NULL: none; in all layers or in none, and as bias_hh */
    const void* bias_hh;   /* (G*H) */
    const void* weight_hr; /* (W, H) of an LSTM with projection; else NULL */
} rnnfast_layer;

/* A new stream, its state zero, for rnnfast_destroy to free; NULL where the configuration is none,
 * or memory is short, and rnnfast_error() says why. `layers`: num_layers of them, the lowest first;
 * they and the arrays are read and not kept. */
RNNFAST_API rnnfast_stream* rnnfast_create(const rnnfast_config* config,
                                           const rnnfast_layer* layers);

/* As rnnfast_create, of a layer or cell that Python's `layer.save` wrote: a safetensors file, with
 * the options in its metadata. `config`: in, `batch_size`, and `weights`, of which NULL stands for the
 * precision that the layer had, as in Python's `layer.stream()`; out, where a stream is returned, the
 * others, and the name of that precision in place of a NULL, these strings valid for ever. `path`: as
 * fopen takes it. NULL is returned also where the file cannot be read, is damaged, or has a
 * bidirectional layer; whatever is in it, no more memory is asked for than a few times its size. The
 * option `dropout`, of which a stream has none, is not looked at. */
RNNFAST_API rnnfast_stream* rnnfast_open(const char* path, rnnfast_config* config);

/* Another stream with the same weights, which they share, and with the state as it is now. Either
 * may be destroyed before the other. NULL where memory is short, and rnnfast_error() says so. */
RNNFAST_API rnnfast_stream* rnnfast_clone(const rnnfast_stream* stream);

/* Frees a stream. NULL: nothing. */
RNNFAST_API void rnnfast_destroy(rnnfast_stream* stream);

/* One step: x (B, I) in, y (B, W) out: h of the highest layer. */
RNNFAST_API void rnnfast_step(rnnfast_stream* stream, const void* x, void* y);

/* `steps` steps, 0 or more: x (steps, B, I) in, y (steps, B, W) out. */
RNNFAST_API void rnnfast_run(rnnfast_stream* stream, int64_t steps, const void* x, void* y);

/* h (L, B, W) and, of an LSTM, c (L, B, H), the lowest layer first. Of other cells c is not read or
 * written, and may be NULL. Getting writes both; setting either from NULL sets zeros. */
RNNFAST_API void rnnfast_get_state(const rnnfast_stream* stream, void* h, void* c);
RNNFAST_API void rnnfast_set_state(rnnfast_stream* stream, const void* h, const void* c);

/* Makes the state zero in all layers, for the rows whose entry in `rows` (B) is not 0; NULL: for
 * all. */
RNNFAST_API void rnnfast_reset(rnnfast_stream* stream, const uint8_t* rows);

/* How many multiplications in the dtype take about as long as a step's products. */
RNNFAST_API double rnnfast_step_work(const rnnfast_stream* stream);

/* The bytes of a stream's packed weights, which its copies share. */
RNNFAST_API size_t rnnfast_weights_bytes(const rnnfast_stream* stream);

/* What was wrong with the last call on this thread that returned NULL, as one line of text, of an
 * argument "name: expected ..., got ..."; empty where there was none. Valid until the next such call
 * there. */
RNNFAST_API const char* rnnfast_error(void);

/* The instruction set in use, "avx2" say: the best that this CPU has, or the one that the
 * environment variable RNNFAST_ISA names. NULL where that names none which can be, and
 * rnnfast_error() says why. Chosen once, by the first stream or this call, and valid for ever. */
RNNFAST_API const char* rnnfast_isa(void);

#ifdef __cplusplus
}
#endif
#endif
