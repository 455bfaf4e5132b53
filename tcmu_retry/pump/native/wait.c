/*
 * Sleeping: polls of the uio device and of the wake-up are armed in the same io_uring, so one system call submits and
 * waits. The device's event is read when its poll ends, before the next look at the ring, never after; one that comes
 * later ends the next poll at once. `asleep` is raised before the last look at `roused`, so who sets that afterwards
 * writes the wake-up.
 *
 * Before sleeping the loop looks on for a moment, for storage and for the initiator each by its own record: only after a
 * sleep that such a look would have spared, and never again after a look in vain, until the next such sleep. So an idle
 * LUN, or one on slow storage, costs nothing. It looks for as long as a sleep costs, 10 µs at least, for then it never
 * costs more than twice what the better choice would. What a sleep costs is measured: 5 µs on a processor; where it is
 * dear, on a virtual processor that is halted or emulated, there is no work in it but time, and it looks for longer:
 * with one command out that answers twice to three times as many. One processor at least is left to those it waits for.
 */
#include "wait.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 32, LONGER = 32 };
static const uint64_t LEAST = 10000, DEAR = 20000, MOST = 2000000; /* ns */

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

/* ---- what a sleep costs */

static bool throw(int court)
{
    return write(court, "", 1) == 1;
}

static bool catch(int court)
{
    char ball;
    return read(court, &ball, 1) == 1;
}

static void *return_all(void *court)
{
    while (catch(*(int *)court) && throw(*(int *)court))
        ;
    return NULL;
}

static uint64_t look_most;
static int spare; /* processors but one */
static atomic_int looking; /* loops of this process */

static void measure(void)
{
    uint64_t least = 0;
    pthread_t other;
    int court[2];

    spare = (int)sysconf(_SC_NPROCESSORS_ONLN) - 1;
    if (!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, court)) {
        if (!pthread_create(&other, NULL, return_all, &court[1])) {
            for (int i = 0; i < ROUNDS; i++) {
                uint64_t began = wait_now(), took;
                if (!throw(court[0]) || !catch(court[0]))
                    break;
                took = wait_now() - began;
                least = least && least < took ? least : took;
            }
            shutdown(court[0], SHUT_RDWR);
            pthread_join(other, NULL);
        }
        close(court[0]);
        close(court[1]);
    }
    look_most = least / 2; /* two sleeps a round */
    if (look_most > DEAR)
        look_most *= LONGER;
    look_most = look_most < LEAST ? LEAST : look_most > MOST ? MOST : look_most;
}

uint64_t wait_look_most(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, measure);
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

/* Until there may be something to do. */
static int sleep_on(struct loop *loop)
{
    struct __kernel_timespec soon = {0, 10000000};
    struct io_uring_cqe *cqe;
    int result;

    atomic_store(&loop->asleep, 1);
    atomic_thread_fence(memory_order_seq_cst); /* before the last look, or each of two would miss the other */
    if (pending(loop) || io_uring_sq_space_left(&loop->uring) < 2) { /* 2: without the two polls nobody could wake us */
        result = io_uring_submit_and_get_events(&loop->uring);
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
