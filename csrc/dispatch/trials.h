// Whether short passes are run by one thread or by a team: by what each took lately.
#pragma once

#include <cstdint>

namespace rnnfast {

// Estimates of such passes err by a factor, and how long it takes two cores to meet differs by machine,
// and on a virtual one by the minute: so each way is tried, and tried again.
enum class Way {
    alone,
    team,
    waking_team,  // as the one that is not taken as a rule, whose workers sleep
};

// How to run a pass of this kind, a hash of all that its time depends on, that a team may be worth.
Way way_of(uint64_t kind);

// That a pass of this kind took so long, one way or the other.
void note_time(uint64_t kind, bool by_team, double ns);

}  // namespace rnnfast
