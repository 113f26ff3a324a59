# cython: language_level=3, boundscheck=False, wraparound=False
"""A filter that runs an LSTM over samples, in a Cython loop without the GIL."""
from rnnfast.c cimport (
    rnnfast_config, rnnfast_create, rnnfast_destroy, rnnfast_error, rnnfast_layer, rnnfast_step,
    rnnfast_stream,
)


cdef class Filter:
    """Computes y_t = w h_t + b, where h is the output of an LSTM that reads x.

    Only one thread at a time may call a filter.

    layer : an `rnnfast.LSTM(1, H)` in float32; its weights are copied.
    w : (H,) float32.
    b : a number.
    """

    cdef rnnfast_stream* stream
    cdef float[::1] w, h
    cdef float b

    def __cinit__(self, layer, float[::1] w, float b):
        names = {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
        if set(layer.parameters) != names:
            raise ValueError("expected one layer in one direction, with biases")
        cdef const float[:, ::1] weight_ih = layer.parameters["weight_ih_l0"]
        cdef const float[:, ::1] weight_hh = layer.parameters["weight_hh_l0"]
        cdef const float[::1] bias_ih = layer.parameters["bias_ih_l0"]
        cdef const float[::1] bias_hh = layer.parameters["bias_hh_l0"]
        cdef Py_ssize_t hidden = weight_hh.shape[1]
        if (weight_ih.shape[0], weight_ih.shape[1]) != (4 * hidden, 1) or w.shape[0] != hidden:
            raise ValueError("expected an LSTM(1, H) and w of shape (H,)")
        self.w, self.b, self.h = w.copy(), b, w.copy()
        cdef rnnfast_layer weights = rnnfast_layer(
            weight_ih=&weight_ih[0, 0], weight_hh=&weight_hh[0, 0],
            bias_ih=&bias_ih[0], bias_hh=&bias_hh[0], weight_hr=NULL)
        cdef rnnfast_config config = rnnfast_config(
            cell=b"lstm", dtype=b"float32", weights=NULL, input_size=1,
            hidden_size=hidden, proj_size=0, num_layers=1, batch_size=1)
        self.stream = rnnfast_create(&config, &weights)
        if self.stream is NULL:
            raise ValueError(rnnfast_error().decode())

    def __dealloc__(self):
        rnnfast_destroy(self.stream)

    def __call__(self, const float[::1] x, float[::1] y):
        """Filters x (T,) to y (T,), which may be x; goes on where the last call ended."""
        cdef Py_ssize_t t, k
        cdef float total
        if x.shape[0] != y.shape[0]:
            raise ValueError("expected x and y of one length")
        with nogil:
            for t in range(x.shape[0]):
                rnnfast_step(self.stream, &x[t], &self.h[0])
                total = self.b
                for k in range(self.w.shape[0]):
                    total += self.w[k] * self.h[k]
                y[t] = total
