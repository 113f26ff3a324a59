// Releases the interpreter's lock (GIL) while a pass runs.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

namespace rnnfast {

// While it lives, the GIL is released if `release` is true.
//
// If the thread is a daemon thread, the interpreter may have ended in the meantime. CPython before 3.14 then
// ends the thread by unwinding its stack, and on the way destructors would release Python objects without
// the GIL. So the thread waits here for the process to end, as it does in later versions.
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
