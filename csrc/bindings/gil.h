// The interpreter's lock, let go while a pass runs.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

namespace rnnfast {

// Releases the GIL while it lives, if `release`.
//
// At its end a thread may find the interpreter gone, of whose daemon threads it is one. CPython before
// 3.14 then ends the thread by unwinding its stack, in the course of which objects would be given back
// without the GIL; as later ones do, it waits here for the process to end.
class GilRelease {
public:
    explicit GilRelease(bool release = true) : state_(release ? PyEval_SaveThread() : nullptr) {}
    ~GilRelease() {
        if (!state_) return;
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }
    GilRelease(const GilRelease&) = delete;
    GilRelease& operator=(const GilRelease&) = delete;

private:
    PyThreadState* const state_;
};

}  // namespace rnnfast
