/*
 * Sleeping: while I/O is out, polls of the uio device and of the wake-up are armed in the same io_uring, so one system
 * call submits and waits. While none is, the loop sleeps in poll: waiting in io_uring counts as iowait since Linux
 * 6.1.39 as long as any request is pending, an armed poll too, so a host with an idle LUN would seem to wait for its
 * storage for ever. (To poll io_uring's own descriptor does not do: with DEFER_TASKRUN newer kernels wake nobody there
 * before this thread asks.) The device's event is read when its poll ends, before the next look at the ring, never
 * after; one that comes later ends the next poll at once. `asleep` is raised before the last look at `roused`, so who
 * sets that afterwards writes the wake-up.
 *
 * Before sleeping the loop looks on for a moment, for storage and for the initiator each by its own record: only after a
 * sleep that such a look would have spared, and never again after a look in vain, until the next such sleep. So an idle
 * LUN, or one on slow storage, costs nothing. It looks for 10 µs, about what a sleep costs, for then it never costs much
 * more than twice what the better choice would. On a processor that QEMU emulates (TCG) waking another address space
 * costs a hundred times as much, for that empties the emulator's translation cache, and there is no work in it but
 * time: there it is 1 ms, and with one command out that answers twice to three times as many. What a sleep costs is not
 * measured, for on a virtual machine with busy processors it was seen to seem as dear as on an emulated one. One
 * processor at least is left to those it waits for.
 */
#include "wait.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

enum { HOLD_MS = 10 };
static const uint64_t LOOK = 10000, LOOK_EMULATED = 1000000; /* ns */

uint64_t wait_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t look_most;
static int spare; /* processors but one */
static atomic_int looking; /* loops of this process */

static bool emulated(void)
{
#if defined(__x86_64__)
    const unsigned HYPERVISOR = 1u << 31;
    unsigned a, b, c, d, name[3];

    if (__get_cpuid(1, &a, &b, &c, &d) && c & HYPERVISOR) {
        __cpuid(0x40000000, a, name[0], name[1], name[2]);
        return !memcmp(name, "TCGTCGTCGTCG", sizeof name);
    }
#endif
    return false;
}

static void find_out(void)
{
    spare = (int)sysconf(_SC_NPROCESSORS_ONLN) - 1;
    look_most = emulated() ? LOOK_EMULATED : LOOK;
}

uint64_t wait_look_most(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_out);
    return look_most;
}

static bool pending(struct loop *loop)
{
    unsigned flags = __atomic_load_n(loop->uring.sq.kflags, __ATOMIC_RELAXED);
    return (!loop->hold && ring_unfetched(&loop->ring)) || io_uring_cq_ready(&loop->uring) ||
           flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW) ||
           atomic_load_explicit(&loop->roused, memory_order_relaxed);
}

int wait_tolerate(int result)
{
    static const struct timespec millisecond = {0, 1000000};
    if (result == -EAGAIN || result == -EBUSY || result == -ENOMEM) {
        nanosleep(&millisecond, NULL);
        return 0;
    }
    return result == -EINTR || result == -ETIME || result > 0 ? 0 : result;
}

static void arm(struct loop *loop, int fd, uint64_t who, bool *armed)
{
    struct io_uring_sqe *sqe;
    if (*armed || !(sqe = io_uring_get_sqe(&loop->uring)))
        return;
    io_uring_prep_poll_add(sqe, fd, POLLIN);
    io_uring_sqe_set_data64(sqe, who);
    *armed = true;
}

static bool look_until(struct loop *loop, uint64_t until)
{
    do {
        for (int i = 0; i < 16; i++) {
            if (pending(loop))
                return true;
            relax();
        }
    } while (wait_now() < until);
    return false;
}

/* Whether something came while looking on. */
static bool look_on(struct loop *loop)
{
    bool came;

    if (io_uring_sq_ready(&loop->uring))
        io_uring_submit_and_get_events(&loop->uring); /* an error comes again at the next submission */
    if (pending(loop))
        return true;
    came = atomic_fetch_add(&looking, 1) < spare && look_until(loop, wait_now() + loop->look_most);
    atomic_fetch_sub(&looking, 1);
    if (came)
        loop_add(&loop->polls, 1);
    return came;
}

void wait_note_uio(struct loop *loop, int events)
{
    char four[4];
    if (events & ~POLLIN || (read(loop->uio, four, sizeof four) < 0 && errno != EAGAIN && errno != EINTR))
        loop->removed = true;
}

void wait_note_wake(struct loop *loop)
{
    uint64_t value;
    while (read(loop->wake, &value, sizeof value) < 0 && errno == EINTR)
        ;
}

/* While no I/O is out. Polls that are armed from before end too, or find nothing left and stay. */
static int sleep_idle(struct loop *loop)
{
    struct pollfd polled[2] = {{.fd = loop->uio, .events = POLLIN}, {.fd = loop->wake, .events = POLLIN}};

    if (poll(polled, 2, loop->hold ? HOLD_MS : -1) < 0)
        return -errno;
    if (polled[0].revents)
        wait_note_uio(loop, polled[0].revents);
    if (polled[1].revents)
        wait_note_wake(loop);
    return 0;
}

/* Until there may be something to do. */
static int sleep_on(struct loop *loop)
{
    struct __kernel_timespec soon = {0, HOLD_MS * 1000000};
    struct io_uring_cqe *cqe;
    int result;

    atomic_store(&loop->asleep, 1);
    atomic_thread_fence(memory_order_seq_cst); /* before the last look, or each of two would miss the other */
    if (pending(loop) || io_uring_sq_space_left(&loop->uring) < 2) { /* 2: without the two polls nobody could wake us */
        result = io_uring_submit_and_get_events(&loop->uring);
    } else if (!loop->out) {
        loop_add(&loop->sleeps, 1);
        result = sleep_idle(loop);
    } else {
        arm(loop, loop->uio, FOR_UIO, &loop->uio_armed);
        arm(loop, loop->wake, FOR_WAKE, &loop->wake_armed);
        loop_add(&loop->sleeps, 1);
        result = loop->hold ? io_uring_submit_and_wait_timeout(&loop->uring, &cqe, 1, &soon, NULL)
                            : io_uring_submit_and_wait(&loop->uring, 1);
    }
    atomic_store(&loop->asleep, 0);
    return result;
}

int wait_or_submit(struct loop *loop, bool may_sleep)
{
    bool *looks = &loop->looks[loop->out != 0];

    if (may_sleep && !pending(loop) && !(*looks && look_on(loop))) {
        uint64_t began = wait_now();
        int result = wait_tolerate(sleep_on(loop));
        *looks = !*looks && wait_now() - began < loop->look_most;
        return result;
    }
    if (io_uring_sq_ready(&loop->uring) ||
        __atomic_load_n(loop->uring.sq.kflags, __ATOMIC_RELAXED) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
        return wait_tolerate(io_uring_submit_and_get_events(&loop->uring));
    return 0;
}
