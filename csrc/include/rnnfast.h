/* rnnfast in C: recurrent networks step by step, with all state inside.
 *
 * A stream is a stack of layers in one direction, with its own copy of the weights. It is made once
 * and then stepped: a step allocates nothing, takes no lock, and makes no system call, so that it can
 * run in a real-time thread. Streams may be stepped at the same time from several threads, each by
 * one of them.
 *
 * Letters: L layers, B batch, I input, H hidden, W width of h (H, or the projection's size), G gates
 * (LSTM 4: i f g o; GRU 3: r z n; Elman RNN 1). Arrays are C-contiguous, of the stream's dtype, and
 * aligned to their items. A step's x and y may be the same array where I = W. */
#ifndef RNNFAST_H
#define RNNFAST_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define RNNFAST_API
#else
#define RNNFAST_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rnnfast_stream rnnfast_stream;

/* What a stream computes. */
typedef struct rnnfast_config {
    const char* cell;    /* "rnn_tanh", "rnn_relu", "gru", "gru_reset_before" or "lstm" */
    const char* dtype;   /* "float32" or "float64": of all arrays */
    const char* weights; /* how the weights are kept: NULL, as they are */
    int64_t input_size;  /* I of the first layer, 0 or more; those above read W */
    int64_t hidden_size; /* H */
    int64_t proj_size;   /* of an LSTM with projection, below H; 0: none */
    int64_t num_layers;  /* L */
    int64_t batch_size;  /* B */
} rnnfast_config;

/* The parameters of a layer, in torch's layout. */
typedef struct rnnfast_layer {
    const void* weight_ih; /* (G*H, I) */
    const void* weight_hh; /* (G*H, W) */
    const void* bias_ih;   /* (G*H)  NULL: none; in all layers or in none, and as bias_hh */
    const void* bias_hh;   /* (G*H) */
    const void* weight_hr; /* (W, H) of an LSTM with projection; else NULL */
} rnnfast_layer;

/* A new stream, its state zero; NULL where the configuration is none, or memory is short, and
 * rnnfast_error() says why. `layers`: num_layers of them, copied. */
RNNFAST_API rnnfast_stream* rnnfast_create(const rnnfast_config* config,
                                           const rnnfast_layer* layers);

/* Another stream with the same weights, which they share, and with the state as it is now. NULL
 * where memory is short. */
RNNFAST_API rnnfast_stream* rnnfast_clone(const rnnfast_stream* stream);

/* NULL is allowed. */
RNNFAST_API void rnnfast_destroy(rnnfast_stream* stream);

/* One step: x (B, I) in, y (B, W) out. */
RNNFAST_API void rnnfast_step(rnnfast_stream* stream, const void* x, void* y);

/* `steps` steps: x (steps, B, I) in, y (steps, B, W) out; the same array where I = W, or apart. */
RNNFAST_API void rnnfast_run(rnnfast_stream* stream, int64_t steps, const void* x, void* y);

/* h (L, B, W) and, of an LSTM, c (L, B, H). Of other cells c is not read or written. Getting
 * writes both; setting from NULL sets zeros. */
RNNFAST_API void rnnfast_get_state(const rnnfast_stream* stream, void* h, void* c);
RNNFAST_API void rnnfast_set_state(rnnfast_stream* stream, const void* h, const void* c);

/* Zero state for the rows whose entry in `rows` (B) is not 0; NULL: for all. */
RNNFAST_API void rnnfast_reset(rnnfast_stream* stream, const uint8_t* rows);

/* Multiplications of a step, as a measure of how long it takes. */
RNNFAST_API double rnnfast_step_work(const rnnfast_stream* stream);

/* What was wrong with the last call of rnnfast_create or rnnfast_clone on this thread that returned
 * NULL; valid until the next one there. */
RNNFAST_API const char* rnnfast_error(void);

/* The instruction set in use: one that this CPU has, or that RNNFAST_ISA forces. NULL where that
 * names none which can be, and rnnfast_error() says why. */
RNNFAST_API const char* rnnfast_isa(void);

#ifdef __cplusplus
}
#endif
#endif
