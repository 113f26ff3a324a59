// Short passes come to be run the way that is faster, and keep up with what changes.
#include <cstdio>
#include <string>

#include "dispatch/trials.h"
#include "tests/expect.h"

namespace rnnfast {
namespace {

// A kind of pass, and what it takes now, one way and the other, in ns.
struct Simulated {
    uint64_t kind;
    double alone, team;
    bool come = true;  // the workers of a team; else the caller runs it alone

    // The mean time of so many passes; `by_team`: how many of them a team ran.
    double run(int count, int& by_team) {
        double total = 0;
        by_team = 0;
        for (int i = 0; i < count; ++i) {
            const Way way = way_of(kind);
            const bool shared = way != Way::alone && come;
            const double ns = shared ? team : alone;
            by_team += shared;
            total += ns;
            note_time(kind, shared, ns);
        }
        return total / count;
    }
};

void check_the_faster_way() {
    int by_team;
    Simulated fast_team{0x1234567, 100e3, 60e3}, slow_team{0x89ABCDE, 100e3, 150e3};
    for (int i = 0; i < 20; ++i) {
        expect(fast_team.run(64, by_team) < 67e3 && by_team >= 54, "a team that is faster");
        expect(slow_team.run(64, by_team) < 110e3 && by_team <= 14, "a team that is slower");
    }
    slow_team.run(640, by_team);
    expect(by_team > 0 && by_team <= 20,
           "a team that is slower: one of 32 calls at most, and some");
}

// As when a virtual machine is given other cores.
void check_changes() {
    int by_team;
    Simulated pass{0xFEDCBA9, 100e3, 60e3};
    pass.run(200, by_team);
    pass.team = 150e3;
    pass.run(16, by_team);
    expect(by_team <= 12, "a team that has become slower");
    pass.run(640, by_team);
    expect(by_team <= 30, "a team that stays slower");
    pass.team = 60e3;
    pass.run(400, by_team);
    pass.run(64, by_team);
    expect(by_team >= 60, "a team that has become faster");
    pass.alone = 40e3;
    pass.run(1600, by_team);
    pass.run(64, by_team);
    expect(by_team <= 4, "one thread that has become faster");
}

// A first time that memory or a sleeping worker made long does not stay, nor one among many.
void check_outliers() {
    int by_team;
    Simulated pass{0x13579BDF, 100e3, 5e6};
    pass.run(1, by_team);
    pass.team = 60e3;
    pass.run(16, by_team);
    pass.run(64, by_team);
    expect(by_team >= 58, "a first call that took long");
    pass.team = 5e6;
    pass.run(1, by_team);
    pass.team = 60e3;
    pass.run(64, by_team);
    expect(by_team >= 60, "a call of many that took long");
}

// As where another process has the core of a worker for a part of the time: the mean counts.
void check_a_core_that_others_use() {
    Simulated pass{0x55AA55AB, 660e3, 340e3};
    int by_team, all = 0;
    for (int i = 0; i < 400; ++i) {
        pass.team = i % 4 ? 340e3 : 4e6;
        pass.run(1, by_team);
        all += by_team;
    }
    expect(all <= 130, std::to_string(all) +
                           " of 400 calls by a team that is faster three times of four, and far "
                           "slower the fourth");
}

void check_workers_that_do_not_come() {
    int by_team;
    Simulated pass{0x2468ACE1, 100e3, 60e3, false};
    expect(pass.run(300, by_team) == 100e3, "no worker came");
    pass.come = true;
    pass.run(300, by_team);
    expect(by_team >= 280, "workers that come late");
}

// Kinds that take each other's place in the table are asked for again and again, and none is lost.
void check_many_kinds() {
    int by_team, all = 0;
    for (int round = 0; round < 4; ++round)
        for (uint64_t kind = 1; kind < 4000; kind += 2) {
            Simulated pass{kind * 0x9E3779B97F4A7C15u | 1, 100e3, 60e3};
            pass.run(4, by_team);
            all += by_team;
        }
    expect(all > 8000, "more kinds than the table has places");
}

}  // namespace
}  // namespace rnnfast

int main() {
    rnnfast::check_the_faster_way();
    rnnfast::check_changes();
    rnnfast::check_outliers();
    rnnfast::check_a_core_that_others_use();
    rnnfast::check_workers_that_do_not_come();
    rnnfast::check_many_kinds();
    std::printf("%d of %d checks failed\n", rnnfast::failures, rnnfast::checked);
    return rnnfast::failures != 0;
}
