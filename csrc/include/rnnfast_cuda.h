/* Recurrences on a CUDA device: what librnnfast_cuda exports.
 *
 * A pass runs one layer in one direction over a batch of sequences. The products over all steps
 * are the caller's, on the caller's stream: before a forward pass W x + b_w, and after a backward
 * pass those that give the gradients of x, W, R and the biases. What is here is what lies between
 * them, step by step.
 *
 * Letters: T steps, B batch, H hidden, G gates (RNN 1, GRU 3, LSTM 4; rows of weights in torch's
 * order). Arrays are contiguous, in the pass's dtype unless said, and lie on the current device,
 * like all else that is read or written: in its primary context, which is not reset as long as the
 * library is used. Calls only put work on the stream: they can be captured in a graph, and results
 * are the same from run to run. Any thread may call. Functions return 0, or else
 * rnnfast_cuda_error() says why. */
#ifndef RNNFAST_CUDA_H
#define RNNFAST_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifndef RNNFAST_CUDA_API
#define RNNFAST_CUDA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rnnfast_cuda_pass {
    const char* cell;  /* "rnn_tanh", "rnn_relu", "lstm", "gru" */
    const char* dtype; /* "float32", "bfloat16": float32 inside */
    int32_t steps, batch, hidden;
    int32_t reverse;
    const int32_t* lengths; /* (B) in 0..T; null: all T */
    const uint8_t* resets;  /* (T, B); null: never. Nonzero: zero state before the step runs */
    const void* weight_hh;  /* (G*H, H) */
    const void* bias_hh;    /* (G*H); null: none */
    const void* h0;         /* (B, H); null: zeros */
    const void* c0;         /* (B, H); null: zeros, or the cell has no c */
    void* workspace;        /* of rnnfast_cuda_workspace() bytes, its start a multiple of 256 */
    void* stream;           /* cudaStream_t */
} rnnfast_cuda_pass;

typedef struct rnnfast_cuda_outputs {
    const void* wx; /* (T, B, G*H)  in: W x + b_w */
    void* y;        /* (T, B, H)  out; 0 past a row's length */
    void* hn;       /* (B, H)  out: h after each row's last step */
    void* cn;       /* (B, H)  out; null: the cell has no c */
    void* saved;    /* (T, B, S*H)  out: what backward reads; null: no training */
} rnnfast_cuda_outputs;

typedef struct rnnfast_cuda_gradients {
    const void* saved; /* (T, B, S*H)  in: of the forward pass */
    const void* y;     /* (T, B, H)  in: of the forward pass */
    const void* dy;    /* (T, B, H)  in; null: zeros; not read past a row's length */
    const void* dhn;   /* (B, H)  in; null: zeros */
    const void* dcn;   /* (B, H)  in; null: zeros, or the cell has no c */
    void* da;          /* (T, B, G*H)  out: gradients at W x + b_w; 0 past a row's length */
    void* da_hidden;   /* (T, B, H)  out: those of the GRU's last gate at R h + b_r; others: null */
    void* dh0;         /* (B, H)  out; null: not wanted */
    void* dc0;         /* (B, H)  out; null: not wanted, or the cell has no c */
} rnnfast_cuda_gradients;

/* Why the last function failed that this thread called. */
RNNFAST_CUDA_API const char* rnnfast_cuda_error(void);

/* The version of the package that it was built with. */
RNNFAST_CUDA_API const char* rnnfast_cuda_version(void);

/* How many devices there are; -1: the driver does not say, or there is none. */
RNNFAST_CUDA_API int rnnfast_cuda_devices(void);

/* 0: there is code for the current device; or else why passes do not run there. */
RNNFAST_CUDA_API int rnnfast_cuda_runs(void);

/* Numbers a step that are saved for each unit, S: 0 for a cell that is not known. */
RNNFAST_CUDA_API int32_t rnnfast_cuda_saved(const char* cell);

/* Bytes of the workspace; of the pass, only cell, dtype and sizes are read. */
RNNFAST_CUDA_API int rnnfast_cuda_workspace(const rnnfast_cuda_pass* pass, int backward,
                                            size_t* bytes);

RNNFAST_CUDA_API int rnnfast_cuda_forward(const rnnfast_cuda_pass* pass,
                                          const rnnfast_cuda_outputs* outputs);

RNNFAST_CUDA_API int rnnfast_cuda_backward(const rnnfast_cuda_pass* pass,
                                           const rnnfast_cuda_gradients* gradients);

#ifdef __cplusplus
}
#endif

#endif
