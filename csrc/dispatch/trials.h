// Decides whether one thread or a team runs a short pass, by the times that each took lately.
#pragma once

#include <cstdint>

namespace rnnfast {

// Estimates of short passes may be wrong by a factor. The time that two cores need to meet differs between
// machines, and on a virtual machine from minute to minute. So both ways are tried, again and again.
enum class Way {
    alone,
    team,
    waking_team,  // a trial of the team when one thread is faster: the workers sleep and are woken
};

// How to run a pass for which a team may pay. `kind` is a hash of everything that its time depends on.
Way way_of(uint64_t kind);

// Notes the time that a pass of this kind took, by a team or by one thread.
void note_time(uint64_t kind, bool by_team, double ns);

}  // namespace rnnfast
