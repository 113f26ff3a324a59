# cython: language_level=3, freethreading_compatible=True
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""Streams on the compiled kernels: a layer one step at a time, with its state inside.

A step of a small layer takes less than the checks of an array in Python would. Here an array that
lies as the kernels need it is recognised by the fields of NumPy's own struct; every other one,
right or wrong, goes to `rnnfast._streams.Form`, which checks and converts it.
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
    /* The first fields of NumPy's arrays and of their dtypes, the same since its 1.7. */
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

    /* Whether a flag was free and is now taken. */
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


# NumPy's bits for what it calls C_CONTIGUOUS, ALIGNED and WRITEABLE.
cdef enum:
    READABLE = 0x0001 | 0x0100
    WRITABLE = READABLE | 0x0400

cdef const rnnfast_functions* functions = <const rnnfast_functions*> PyCapsule_GetPointer(
    _native.c_functions, "rnnfast._native.c_functions")


@cython.final
cdef class Stream:
    """A layer one step at a time, with the state inside; `layer.stream()` makes one.

    It has a copy of the weights as they were. A copy of a stream (`copy.copy`) shares its weights
    and goes on from the same state by itself; a pickle has weights and state, and opens on the
    backend in use there. A stream is for one thread at a time: a call during another fails.

    Attributes
    ----------
    batch_size : B.
    input_size : I.
    output_size : W, the width of h: P, or H without projection.
    dtype : "float32" or "float64".
    weights : how the weights are kept: as the dtype, or "bfloat16" or "int8".
    nbytes : the bytes of the packed weights, which copies share.
    """

    cdef readonly Py_ssize_t batch_size, input_size, output_size
    cdef readonly str dtype, weights
    cdef readonly size_t nbytes
    cdef object form, numpy_dtype, output_shapes
    cdef rnnfast_stream* handle
    cdef size_t x_bytes, y_bytes
    cdef double work  # of a step
    cdef int type_num  # NumPy's, of the dtype
    cdef int busy
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
        # Without and with B.
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
            # The form was checked before, and the environment when the backend was loaded.
            raise (MemoryError if text == "not enough memory" else RuntimeError)(text)
        self.work = functions.step_work(self.handle)
        self.nbytes = functions.weights_bytes(self.handle)

    def __dealloc__(self):
        if self.handle is not NULL:
            functions.destroy(self.handle)

    def step(self, x, out=None):
        """One step.

        Parameters
        ----------
        x : (B, I), or (I,) where B is 1; the layer's dtype.
        out : (B, W), or (W,) like x: a C-contiguous array that h is written to, which may share
            memory with x. With it a step allocates nothing. None: a new array.

        Returns
        -------
        out : h of the last layer.

        Raises
        ------
        TypeError : an argument of the wrong dtype or form.
        ValueError : an argument of the wrong shape or layout.
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
        """Step after step.

        Parameters
        ----------
        x : (T, B, I), or (T, I) where B is 1, also with `batch_first`; the layer's dtype.
        out : (T, B, W), or (T, W) like x: as for `step`.

        Returns
        -------
        out : h of the last layer after each step.

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
        """A copy of h (L, B, W), or of an LSTM's pair (h, c) with c (L, B, H).

        Takes what the layer takes, also without B where B is 1; None: zeros.
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
        """Makes the state of rows zero.

        Parameters
        ----------
        rows : (B,) booleans, or numbers of rows in 0..B-1. None: all.

        Raises
        ------
        TypeError : rows that are neither.
        ValueError : a mask of another shape, or numbers out of range.
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
        """Whether the array is (B, width), or (width,) where B is 1, as the kernels need it."""
        if array.flags & flags != flags or array.descr.type_num != self.type_num:
            return False
        if array.descr.byteorder != c"=":
            return False
        if array.nd == 2:
            return array.dimensions[0] == self.batch_size and array.dimensions[1] == width
        return array.nd == 1 and self.batch_size == 1 and array.dimensions[0] == width

    cdef bint apart(self, const char* x, const char* y) noexcept:
        """Whether a step may read x and write y: the same array, or no byte in common."""
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
        """Begins a call; `rnnfast_free` ends it."""
        if not rnnfast_take(&self.busy):
            raise RuntimeError("stream: expected one call at a time, got one during another")
        return 0


cdef void* data_of(array) except? NULL:
    """Where an array lies; NULL for None."""
    if array is None:
        return NULL
    return (<ndarray?> array).data


cdef rnnfast_stream* create(form) except? NULL:
    """A new stream from the weights of `form`; NULL where there is an error to ask for."""
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
