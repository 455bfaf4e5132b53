/* The success path of a LUN: ring, io_uring, doorbell. See loop.c. */
#ifndef TCMU_RETRY_LOOP_H
#define TCMU_RETRY_LOOP_H

#include <liburing.h>
#include <stdatomic.h>

#include "plain.h"
#include "ring.h"
#include "shelf.h"

enum { SLOT_CDB = 16, SLOT_IOVS = 16, SLOTS_IN_CHUNK = 256, CHUNKS = 256 };

/* A command whose I/O this loop has out. */
struct slot {
    atomic_uint_fast64_t serial; /* 0: nothing here; others than the loop's thread may look */
    struct plain_request request;
    double began; /* CLOCK_MONOTONIC seconds: of its fetch, and of its I/O */
    uint8_t cdb[SLOT_CDB];
    uint32_t cdb_length;
    uint32_t number; /* its own place */
    uint16_t id;
    bool handed_over; /* Python knows it and completes it */
    uint32_t iov_count, iov_room;
    struct iovec *iovs; /* `own`, or allocated */
    struct iovec own[SLOT_IOVS];
    struct slot *next_free;
    /* While the replay log is ours. */
    struct slot *before, *behind; /* among the writes that are out, the latest first */
    bool waits; /* for an earlier one that it overlaps */
    struct shelf_mark mark; /* of a flush: what it makes durable */
};

/* Why loop_run came back. Negative: -errno, the device or io_uring is lost. */
enum loop_reason {
    LOOP_ROUSED = 1,
    LOOP_BATCH,  /* the ring has entries that are all for Python */
    LOOP_ENTRY,  /* the next one entry is for Python */
    LOOP_ENDED,  /* `ended` and `result`: I/O that failed, or that was handed over */
    LOOP_BELL,   /* completions were written and the doorbell is Python's */
    LOOP_DOUBT,  /* `result`: the replay log was flushed for its own sake, and that failed */
    LOOP_BROKEN, /* the ring makes no sense: `fault` */
    LOOP_REMOVED
};

struct loop {
    struct ring ring;
    struct io_uring uring;
    int uio, bell, wake; /* bell: -1 for Python's */
    int storage; /* -1: nothing is run here */
    struct plain_disk disk;
    uint8_t excluding[256]; /* opcodes that suffer no other write beside them */
    struct shelf shelf; /* of write-back; without it, each write is durable when it ends */
    struct slot *writing; /* what will go onto it */
    uint32_t waiting; /* of these, not started yet */
    bool flushing; /* it, for its own sake, up to `mark` */
    struct shelf_mark mark;
    bool hold; /* fetch nothing just now, and come back soon */

    uint64_t serial;
    struct slot *chunks[CHUNKS];
    uint32_t chunk_count;
    struct slot *free;
    bool uio_armed, wake_armed, removed, completed;
    struct slot *ended;
    int result;
    enum ring_fault fault;

    atomic_int asleep, roused;
    uint64_t look_most; /* nanoseconds of looking on before sleeping */
    bool looks[2]; /* whether it pays; with no I/O out: for the initiator; with: for the storage */

    /* Read by other threads. */
    atomic_uint_fast64_t in_flight; /* not handed over */
    atomic_uint_fast64_t reads, writes, flushes, read_bytes, written_bytes, doorbells, sleeps, polls;
    uint32_t out; /* all I/O that has not returned */
};

/* io_uring is made here, its use begins with loop_enable in the thread that runs the loop. 0 or -errno. */
int loop_init(struct loop *loop, unsigned entries);
int loop_enable(struct loop *loop);
int loop_run(struct loop *loop);
/* Another thread wants it to come back. */
void loop_rouse(struct loop *loop);
/* The replay log is ours from here on, until it is taken back. No I/O may be out. */
void loop_lend(struct loop *loop, const struct shelf *shelf);
void loop_take_back(struct loop *loop);
/* Wait until no I/O is out any more, answering nothing. */
void loop_linger(struct loop *loop);
void loop_free_slot(struct loop *loop, struct slot *slot);
/* In the loop's thread if it was enabled. I/O may be out only if the process ends. */
void loop_close(struct loop *loop);

/* One writer; the others only look. */
static inline void loop_add(atomic_uint_fast64_t *counter, uint64_t value)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + value, memory_order_relaxed);
}

static inline struct slot *loop_slot(struct loop *loop, uint32_t number)
{
    return &loop->chunks[number / SLOTS_IN_CHUNK][number % SLOTS_IN_CHUNK];
}

/* How many slots there are, for any thread: not before the chunk that holds them is to be seen, on arm64 either. */
static inline uint32_t loop_slots(const struct loop *loop)
{
    return __atomic_load_n(&loop->chunk_count, __ATOMIC_ACQUIRE) * SLOTS_IN_CHUNK;
}

#endif
