# cython: language_level=3, freethreading_compatible=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""Streams on the compiled kernels: they run a layer one step at a time and hold its state.

A step of a small layer takes less time than it would take Python to check its arrays. This module
therefore reads the fields of NumPy's own struct to recognise an array that the kernels can use as
it is. Every other array, right or wrong, goes to `rnnfast._streams.Form`, which checks and
converts it.
"""

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t

from rnnfast._functions cimport RNNFAST_RELEASING_PAYS, rnnfast_functions
from rnnfast.c cimport rnnfast_config, rnnfast_layer, rnnfast_stream

from numpy import empty

from rnnfast import _native


cdef extern from *:
    """
    /* The first fields of NumPy's arrays and dtypes; they are the same since NumPy 1.7. */
    typedef struct {
        PyObject_HEAD
        PyTypeObject *typeobj;
        char kind, type, byteorder, flags;
        int type_num;
    } rnnfast_dtype;

    typedef struct {
        PyObject_HEAD
        char *data;
        int nd;
        Py_ssize_t *dimensions, *strides;
        PyObject *base;
        rnnfast_dtype *descr;
        int flags;
    } rnnfast_ndarray;

    /* rnnfast_take takes a flag and tells whether it was free; rnnfast_free frees it. */
    #define rnnfast_take(flag) (!__atomic_exchange_n(flag, 1, __ATOMIC_ACQUIRE))
    #define rnnfast_free(flag) __atomic_store_n(flag, 0, __ATOMIC_RELEASE)
    """
    ctypedef struct rnnfast_dtype:
        char byteorder
        int type_num

    ctypedef class numpy.ndarray [object rnnfast_ndarray, check_size ignore]:
        cdef:
            char* data
            int nd
            Py_ssize_t* dimensions
            rnnfast_dtype* descr
            int flags

    bint rnnfast_take(int* flag) nogil
    void rnnfast_free(int* flag) nogil


# NumPy's flags: READABLE is C_CONTIGUOUS and ALIGNED; WRITABLE is these and WRITEABLE.
cdef enum:
    READABLE = 0x0001 | 0x0100
    WRITABLE = READABLE | 0x0400

cdef const rnnfast_functions* functions = <const rnnfast_functions*> PyCapsule_GetPointer(
    _native.c_functions, "rnnfast._native.c_functions")


@cython.final
cdef class Stream:
    """A layer that runs one step at a time and holds its state; `layer.stream()` makes one.

    A stream has its own copy of the weights. A copy of a stream (`copy.copy`) shares them, starts
    from the same state and goes on independently. A pickle contains weights and state, and opens
    on the backend that is then in use. Only one thread at a time may call a stream: a call during
    another call raises RuntimeError.

    Letters: T steps, B batch, I input size, H hidden size, P projection size (0: none), L layers.

    Attributes
    ----------
    batch_size : B, the number of rows.
    input_size : I, the width of x.
    output_size : W, the width of h: P, or H without projection.
    dtype : the dtype of x and h: "float32" or "float64".
    weights : the format of the weights: the dtype, or "bfloat16" or "int8".
    nbytes : the size of the packed weights in bytes. Copies of the stream share them.
    """

    cdef readonly Py_ssize_t batch_size, input_size, output_size
    cdef readonly str dtype, weights
    cdef readonly size_t nbytes
    cdef object form, numpy_dtype, output_shapes
    cdef rnnfast_stream* handle
    cdef size_t x_bytes, y_bytes
    cdef double work  # the cost of a step, in multiplications
    cdef int type_num  # NumPy's number of the dtype
    cdef int busy  # 1 during a call
    cdef object __weakref__

    def __cinit__(self, form, Stream original=None):
        signature = form.signature
        self.form = form
        self.batch_size = form.batch_size
        self.input_size = signature.sizes.input
        self.output_size = signature.sizes.output
        self.dtype = signature.dtype.name
        self.weights = form.weights
        self.numpy_dtype = signature.dtype
        self.type_num = signature.dtype.num
        # The shapes without and with the axis B, so that index nd - 1 selects one.
        self.output_shapes = (self.output_size,), (self.batch_size, self.output_size)
        row = form.batch_size * signature.dtype.itemsize
        self.x_bytes = row * self.input_size
        self.y_bytes = row * self.output_size
        if original is None:
            self.handle = create(form)
        else:
            original.take()
            self.handle = functions.clone(original.handle)
            rnnfast_free(&original.busy)
        if self.handle is NULL:
            text = functions.error().decode()
            # Nothing else is expected: `Form` has checked the sizes and formats, and loading the
            # backend has checked the environment.
            raise (MemoryError if text == "not enough memory" else RuntimeError)(text)
        self.work = functions.step_work(self.handle)
        self.nbytes = functions.weights_bytes(self.handle)

    def __dealloc__(self):
        if self.handle is not NULL:
            functions.destroy(self.handle)

    def step(self, x, out=None):
        """Runs one step.

        Parameters
        ----------
        x : (B, I), or (I,) if B is 1; in the layer's dtype.
        out : the array to write h to: (B, W), or (W,) if x is (I,); in the layer's dtype,
            C-contiguous, writable; it may share memory with x. With `out`, a step on an x that
            needs no conversion allocates nothing. None: a new array.

        Returns
        -------
        out : h of the last layer, (B, W), or (W,) if x is (I,).

        Raises
        ------
        TypeError : an argument has the wrong type or dtype.
        ValueError : an argument has the wrong shape or layout.
        RuntimeError : another thread is in a call of this stream.
            In each case the state stays as it is.
        """
        cdef ndarray given, result
        if type(x) is ndarray and self.lies(x, self.input_size, READABLE):
            given = x
            if out is None:
                result = empty(self.output_shapes[given.nd - 1], self.numpy_dtype)
                self.advance(1, given.data, result.data)
                return result
            if type(out) is ndarray and self.lies(out, self.output_size, WRITABLE):
                result = out
                if given.nd == result.nd and self.apart(given.data, result.data):
                    self.advance(1, given.data, result.data)
                    return result
        given, result = self.form.arguments(x, out, False)
        self.advance(1, given.data, result.data)
        return result

    def run(self, x, out=None):
        """Runs T steps, one after the other.

        Parameters
        ----------
        x : (T, B, I), or (T, I) if B is 1, also with `batch_first`; in the layer's dtype.
        out : the array to write to: (T, B, W), or (T, W) if x is (T, I); otherwise as for `step`.

        Returns
        -------
        out : h of the last layer after each step, (T, B, W), or (T, W) if x is (T, I).

        Raises
        ------
        TypeError, ValueError, RuntimeError : as for `step`.
        """
        cdef ndarray given, result
        given, result = self.form.arguments(x, out, True)
        self.advance(given.dimensions[0], given.data, result.data)
        return result

    @property
    def state(self):
        """The state: h (L, B, W), or for LSTM a pair (h, c) with c (L, B, H).

        Reading it gives a copy, in the layer's dtype. It can be set to whatever state the layer
        takes, also without the axis B if B is 1; None sets zeros. A value of the wrong dtype or
        form raises TypeError, one of the wrong shape ValueError. Reading or setting it while
        another thread is in a call of this stream raises RuntimeError.
        """
        states = self.form.new_states()
        cdef void* h = data_of(states[0])
        cdef void* c = data_of(states[1]) if len(states) > 1 else NULL
        self.take()
        functions.get_state(self.handle, h, c)
        rnnfast_free(&self.busy)
        return states[0] if len(states) == 1 else tuple(states)

    @state.setter
    def state(self, value):
        states = self.form.states(value) or (None,)
        cdef void* h = data_of(states[0])
        cdef void* c = data_of(states[1]) if len(states) > 1 else NULL
        self.take()
        functions.set_state(self.handle, h, c)
        rnnfast_free(&self.busy)

    @state.deleter
    def state(self):
        raise AttributeError("state: cannot be deleted; None sets zeros")

    def reset(self, rows=None):
        """Sets the state of some rows, or of all, to zero.

        Parameters
        ----------
        rows : (B,) booleans, or an array of row numbers in 0..B-1. None: all rows.

        Raises
        ------
        TypeError : `rows` contains neither booleans nor integers.
        ValueError : a mask has another shape than (B,), or a number is out of range.
        RuntimeError : another thread is in a call of this stream.
        """
        mask = self.form.rows(rows)
        cdef uint8_t* chosen = <uint8_t*> data_of(mask)
        self.take()
        functions.reset(self.handle, chosen)
        rnnfast_free(&self.busy)

    def __copy__(self):
        return Stream(self.form, self)

    def __deepcopy__(self, memo):
        return Stream(self.form, self)

    def __reduce__(self):
        return self.form.open, (self.state,)

    def __repr__(self):
        return self.form.text()

    cdef bint lies(self, ndarray array, Py_ssize_t width, int flags) noexcept:
        """Whether the kernels can use the array as it is: (B, width), or (width,) if B is 1."""
        if array.flags & flags != flags or array.descr.type_num != self.type_num:
            return False
        if array.descr.byteorder != c"=":
            return False
        if array.nd == 2:
            return array.dimensions[0] == self.batch_size and array.dimensions[1] == width
        return array.nd == 1 and self.batch_size == 1 and array.dimensions[0] == width

    cdef bint apart(self, const char* x, const char* y) noexcept:
        """Whether a step may read x and write y: they coincide, or have no byte in common."""
        cdef size_t first = <size_t> x, second = <size_t> y
        if first == second:
            return self.x_bytes == self.y_bytes
        return first + self.x_bytes <= second or second + self.y_bytes <= first

    cdef int advance(self, int64_t steps, const void* x, void* y) except -1:
        self.take()
        if self.work * steps >= RNNFAST_RELEASING_PAYS:
            with nogil:
                functions.run(self.handle, steps, x, y)
        else:
            functions.run(self.handle, steps, x, y)
        rnnfast_free(&self.busy)
        return 0

    cdef int take(self) except -1:
        """Begins a call, or raises RuntimeError during another one; `rnnfast_free` ends it."""
        if not rnnfast_take(&self.busy):
            raise RuntimeError("stream: expected one call at a time, got one during another")
        return 0


cdef void* data_of(array) except? NULL:
    """The address of an array's data; NULL for None."""
    if array is None:
        return NULL
    return (<ndarray?> array).data


cdef rnnfast_stream* create(form) except? NULL:
    """A new stream from the weights of `form`; NULL if it failed and `error` has the message."""
    signature = form.signature
    sizes = signature.sizes
    cell, dtype = signature.cell.name.encode(), signature.dtype.name.encode()
    kept, arrays = form.weights.encode(), form.arrays()
    cdef rnnfast_config config
    config.cell, config.dtype, config.weights = cell, dtype, kept
    config.input_size = sizes.input
    config.hidden_size = sizes.hidden
    config.proj_size = sizes.projection
    config.num_layers = len(arrays)
    config.batch_size = form.batch_size
    cdef rnnfast_layer* layers = <rnnfast_layer*> PyMem_Calloc(
        len(arrays), sizeof(rnnfast_layer))
    if layers is NULL:
        raise MemoryError
    try:
        for k, weights in enumerate(arrays):
            layers[k].weight_ih = data_of(weights.weight_ih)
            layers[k].weight_hh = data_of(weights.weight_hh)
            layers[k].bias_ih = data_of(weights.bias_ih)
            layers[k].bias_hh = data_of(weights.bias_hh)
            layers[k].weight_hr = data_of(weights.weight_hr)
        return functions.create(&config, layers)
    finally:
        PyMem_Free(layers)
