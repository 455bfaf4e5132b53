/*
 * The success path of a LUN.
 *
 * Theory of operation
 * -------------------
 * One thread runs `loop_run`, without Python's lock. As long as every command is plain and every I/O succeeds it stays
 * in there: entries become io_uring requests straight into the mapped buffers, completions of a turn become entries at
 * the ring's tail and one doorbell. It comes back to Python for everything else, and Python does that as the reference
 * pump does; the meaning of a pump is written down once, in reference.py.
 *
 * What Python must decide on is looked for in a batch before any of it starts: task management, and what suffers no
 * other write beside it (COMPARE AND WRITE), send the whole batch there, so that an abort finds commands of its own
 * batch not started.
 *
 * The gate is `storage`: -1 and nothing is run here. At a failing completion the loop sets it itself and comes back at
 * once, before it fetches again; Python closes the gate and takes over (`handed_over`) what is running: completed by
 * Python from then on, even if it succeeds.
 *
 * Write-back: while the replay log is lent (shelf.c), a write is put there before its completion, a flush passes over
 * what stood there when it was started, and writes are not durable by themselves. A write that overlaps an earlier one
 * waits for it. One that finds no room is Python's, and with it, until it is lent again, the log and all that runs. Half
 * full, it is flushed.
 *
 * io_uring runs with DEFER_TASKRUN (Linux 6.1): completions come only when this thread asks, none interrupts it.
 * Buffers are not registered: that would pin pages which the kernel takes back from the data area. Neither is the
 * storage's file: a registered file, and with it the storage's lock, stays open behind a close.
 */
#include "loop.h"
#include "journal.h"
#include "wait.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { IOVS_AT_ONCE = 1024 };

int loop_init(struct loop *loop, unsigned entries)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CQSIZE,
        .cq_entries = entries * 8,
    };
    loop->look_most = wait_look_most();
    return io_uring_queue_init_params(entries, &loop->uring, &params);
}

int loop_enable(struct loop *loop)
{
    /* Not io_uring_enable_rings: Debian 12's liburing 2.3 does not export it. */
    return io_uring_register((unsigned)loop->uring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

/* ---- slots */

static struct slot *take_slot(struct loop *loop)
{
    struct slot *slot = loop->free;
    if (!slot) {
        struct slot *chunk;
        if (loop->chunk_count == CHUNKS || !(chunk = calloc(SLOTS_IN_CHUNK, sizeof *chunk)))
            return NULL;
        for (uint32_t i = 0; i < SLOTS_IN_CHUNK; i++) {
            chunk[i].number = loop->chunk_count * SLOTS_IN_CHUNK + i;
            chunk[i].iovs = chunk[i].own;
            chunk[i].iov_room = SLOT_IOVS;
            chunk[i].next_free = loop->free;
            loop->free = &chunk[i];
        }
        loop->chunks[loop->chunk_count] = chunk;
        /* Others walk the chunks by this count. */
        __atomic_store_n(&loop->chunk_count, loop->chunk_count + 1, __ATOMIC_RELEASE);
        slot = loop->free;
    }
    loop->free = slot->next_free;
    return slot;
}

void loop_free_slot(struct loop *loop, struct slot *slot)
{
    atomic_store_explicit(&slot->serial, 0, memory_order_release);
    slot->next_free = loop->free;
    loop->free = slot;
}

/* ---- from the ring to the storage */

static void launch(struct loop *loop, struct io_uring_sqe *sqe, struct slot *slot)
{
    const struct plain_request *request = &slot->request;

    if (request->op == PLAIN_FLUSH) {
        io_uring_prep_fsync(sqe, loop->storage, IORING_FSYNC_DATASYNC);
    } else if (request->op == PLAIN_READ) {
        if (slot->iov_count == 1)
            io_uring_prep_read(sqe, loop->storage, slot->iovs->iov_base, (unsigned)slot->iovs->iov_len, request->offset);
        else
            io_uring_prep_readv(sqe, loop->storage, slot->iovs, slot->iov_count, request->offset);
    } else {
        if (slot->iov_count == 1)
            io_uring_prep_write(sqe, loop->storage, slot->iovs->iov_base, (unsigned)slot->iovs->iov_len, request->offset);
        else
            io_uring_prep_writev(sqe, loop->storage, slot->iovs, slot->iov_count, request->offset);
        sqe->rw_flags = loop->shelf.memory && !request->fua ? 0 : RWF_DSYNC;
    }
    io_uring_sqe_set_data64(sqe, slot->number);
    loop->out++;
}

/* With a replay log, writes that overlap come one after the other: nobody would know their order to make them again. */
static bool overlaps(const struct slot *slot, const struct plain_request *request)
{
    for (; slot; slot = slot->behind)
        if (slot->request.offset < request->offset + request->length &&
            request->offset < slot->request.offset + slot->request.length)
            return true;
    return false;
}

static void note_start(struct loop *loop, struct slot *slot)
{
    slot->mark = shelf_mark(&loop->shelf);
    if (slot->request.op != PLAIN_WRITE)
        return;
    slot->waits = overlaps(loop->writing, &slot->request);
    loop->waiting += slot->waits;
    slot->before = NULL;
    slot->behind = loop->writing;
    if (slot->behind)
        slot->behind->before = slot;
    loop->writing = slot;
}

/* Those whose time has come. */
static void launch_waiting(struct loop *loop)
{
    for (struct slot *slot = loop->writing; slot && loop->waiting; slot = slot->behind)
        if (slot->waits && io_uring_sq_space_left(&loop->uring) && !overlaps(slot->behind, &slot->request)) {
            slot->waits = false;
            loop->waiting--;
            launch(loop, io_uring_get_sqe(&loop->uring), slot);
        }
}

/* Long before it is full, so that no write has to wait for it. */
static void flush_in_time(struct loop *loop)
{
    struct io_uring_sqe *sqe;

    if (loop->flushing || loop->storage < 0 || !shelf_fills(&loop->shelf) || !(sqe = io_uring_get_sqe(&loop->uring)))
        return;
    io_uring_prep_fsync(sqe, loop->storage, IORING_FSYNC_DATASYNC);
    io_uring_sqe_set_data64(sqe, FOR_FLUSH);
    loop->mark = shelf_mark(&loop->shelf);
    loop->flushing = true;
    loop->out++;
}

static void note_success(struct loop *loop, struct slot *slot)
{
    if (slot->request.op == PLAIN_FLUSH)
        shelf_flushed(&loop->shelf, slot->mark);
    if (slot->request.op != PLAIN_WRITE)
        return;
    shelf_put(&loop->shelf, slot->request.offset, slot->request.length, slot->iovs, slot->iov_count);
    if (slot->before)
        slot->before->behind = slot->behind;
    else
        loop->writing = slot->behind;
    if (slot->behind)
        slot->behind->before = slot->before;
    flush_in_time(loop);
}

void loop_lend(struct loop *loop, const struct shelf *shelf)
{
    loop->shelf = *shelf;
    loop->writing = NULL;
    loop->waiting = 0;
}

void loop_take_back(struct loop *loop)
{
    loop->shelf.memory = NULL;
    loop->writing = NULL;
    loop->waiting = 0;
}

/* Whether it was started; otherwise Python runs it. */
static bool start(struct loop *loop, const struct ring_entry *entry, double now)
{
    struct plain_request request;
    struct slot *slot;

    if (entry->count > IOVS_AT_ONCE || (loop->ring.journal && entry->id >= loop->ring.journal_room) ||
        !plain_read(entry->cdb, entry->cdb_length, entry->data_length, &loop->disk, &request) ||
        !(slot = take_slot(loop)))
        return false;
    if (entry->count > slot->iov_room) {
        struct iovec *iovs = malloc(entry->count * sizeof *iovs);
        if (!iovs) {
            loop_free_slot(loop, slot);
            return false;
        }
        if (slot->iovs != slot->own)
            free(slot->iovs);
        slot->iovs = iovs;
        slot->iov_room = entry->count;
    }
    if (loop->shelf.memory && request.op == PLAIN_WRITE && !shelf_promise(&loop->shelf, request.length)) {
        loop_free_slot(loop, slot);
        return false;
    }
    for (uint32_t i = 0; i < entry->count; i++) {
        slot->iovs[i].iov_base = loop->ring.memory + entry->iovs[i].offset;
        slot->iovs[i].iov_len = entry->iovs[i].length;
    }
    slot->iov_count = entry->count;
    slot->request = request;
    slot->began = now;
    slot->cdb_length = entry->cdb_length;
    memcpy(slot->cdb, entry->cdb, entry->cdb_length);
    slot->id = entry->id;
    slot->handed_over = slot->waits = false;
    atomic_store_explicit(&slot->serial, ++loop->serial, memory_order_release);

    if (loop->shelf.memory)
        note_start(loop, slot);
    if (!slot->waits)
        launch(loop, io_uring_get_sqe(&loop->uring), slot); /* there is one: `scan` looked */
    loop_add(&loop->in_flight, 1);
    return true;
}

/* 0: everything there is was started, or there is no room in io_uring just now. */
static int scan(struct loop *loop)
{
    struct ring *ring = &loop->ring;
    struct ring_entry entry;
    uint32_t head, at;
    double now;

    if (loop->waiting && loop->storage >= 0)
        launch_waiting(loop);
    if (loop->hold || !ring_unfetched(ring))
        return 0;
    if ((loop->fault = ring_find_head(ring, &head)))
        return LOOP_BROKEN;
    if (loop->storage < 0)
        return LOOP_BATCH;
    for (at = ring->next; at != head; at = ring_after(ring, at, &entry)) {
        if ((loop->fault = ring_look(ring, at, head, &entry)))
            return LOOP_BROKEN;
        if (entry.op == OP_TMR || (entry.op == OP_CMD && loop->excluding[entry.cdb[0]]))
            return LOOP_BATCH;
    }
    now = (double)wait_now() / 1e9;
    while (ring->next != head) {
        ring_look(ring, ring->next, head, &entry);
        if (entry.op == OP_CMD) {
            if (!io_uring_sq_space_left(&loop->uring))
                return 0;
            if (!start(loop, &entry, now))
                return LOOP_ENTRY;
            journal_open(ring, &entry, now);
        } else if (entry.op != OP_PAD) {
            ring_refuse(ring, ring->next);
        }
        ring_pass(ring, &entry);
    }
    return 0;
}

/* ---- from the storage to the ring */

static void count(struct loop *loop, const struct plain_request *request)
{
    if (request->op == PLAIN_READ) {
        loop_add(&loop->reads, 1);
        loop_add(&loop->read_bytes, request->length);
    } else if (request->op == PLAIN_WRITE) {
        loop_add(&loop->writes, 1);
        loop_add(&loop->written_bytes, request->length);
    } else {
        loop_add(&loop->flushes, 1);
    }
}

/* A poll that ended. */
static void take_poll(struct loop *loop, uint64_t who, int result)
{
    if (who == FOR_WAKE) {
        loop->wake_armed = false;
        wait_note_wake(loop);
    } else {
        loop->uio_armed = false;
        if (result != -ECANCELED)
            wait_note_uio(loop, result);
    }
}

/* One completion; LOOP_ENDED where it is Python's. */
static int take(struct loop *loop, uint64_t who, int result)
{
    struct slot *slot;

    if (who > FOR_CANCEL) {
        take_poll(loop, who, result);
        return 0;
    }
    if (who == FOR_CANCEL)
        return 0;
    if (who == FOR_FLUSH) {
        loop->out--;
        loop->flushing = false;
        loop->result = result;
        if (result < 0)
            return LOOP_DOUBT;
        if (loop->shelf.memory)
            shelf_flushed(&loop->shelf, loop->mark);
        return 0;
    }
    slot = loop_slot(loop, (uint32_t)who);
    loop->out--;
    if (!slot->handed_over && result >= 0 && (uint64_t)result == slot->request.length) {
        if (loop->shelf.memory)
            note_success(loop, slot);
        /* The data is in place before the tail says so: ring_complete stores it with release. */
        if ((loop->fault = ring_complete(&loop->ring, slot->id, 0, NULL, 0, false)))
            return LOOP_BROKEN;
        loop->completed = true;
        count(loop, &slot->request);
        loop_free_slot(loop, slot);
        loop_add(&loop->in_flight, (uint64_t)-1);
        return 0;
    }
    loop->ended = slot;
    loop->result = result;
    if (!slot->handed_over)
        loop->storage = -1;
    return LOOP_ENDED;
}

static int reap(struct loop *loop)
{
    struct io_uring_cqe *cqe;
    unsigned head, taken = 0;
    int why = 0;

    io_uring_for_each_cqe(&loop->uring, head, cqe) {
        taken++;
        if ((why = take(loop, io_uring_cqe_get_data64(cqe), cqe->res)))
            break;
    }
    io_uring_cq_advance(&loop->uring, taken);
    return why;
}

/* 0, or why the loop comes back. */
static int ring_bell(struct loop *loop)
{
    static const char four[4];
    enum ring_fault fault = ring_settle(&loop->ring);

    if (fault) {
        loop->fault = fault;
        return LOOP_BROKEN;
    }
    if (!loop->completed || loop->bell < 0)
        return 0;
    loop->completed = false;
    loop_add(&loop->doorbells, 1);
    while (write(loop->bell, four, sizeof four) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

/* ---- a turn */

int loop_run(struct loop *loop)
{
    for (;;) {
        int why, ended, bell, result;

        if (loop->completed) { /* of an earlier run too, that came back for something else */
            loop->completed = false;
            return LOOP_BELL;
        }
        why = scan(loop);
        result = wait_or_submit(loop, !why);
        if (result < 0)
            return result;
        ended = reap(loop);
        if ((bell = ring_bell(loop)))
            return bell;
        if (ended)
            return ended;
        if (why)
            return why;
        if (loop->removed)
            return LOOP_REMOVED;
        if (atomic_exchange(&loop->roused, 0) || loop->hold)
            return LOOP_ROUSED;
    }
}

void loop_rouse(struct loop *loop)
{
    static const uint64_t one = 1;
    atomic_store(&loop->roused, 1);
    if (atomic_load(&loop->asleep))
        while (write(loop->wake, &one, sizeof one) < 0 && errno == EINTR)
            ;
}

/* ---- the end */

static void disarm(struct loop *loop)
{
    struct io_uring_cqe *cqe;
    bool asked = false;

    while (loop->uio_armed || loop->wake_armed) {
        if (!asked) {
            for (int i = 0; i < 2; i++) {
                struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->uring);
                if (!sqe)
                    break;
                io_uring_prep_poll_remove(sqe, i ? FOR_WAKE : FOR_UIO);
                io_uring_sqe_set_data64(sqe, FOR_CANCEL);
            }
            asked = true;
        }
        if (wait_tolerate(io_uring_submit_and_wait(&loop->uring, 1)) < 0)
            return;
        while (!io_uring_peek_cqe(&loop->uring, &cqe)) {
            uint64_t who = io_uring_cqe_get_data64(cqe);
            if (who < FOR_CANCEL)
                loop->out--;
            else if (who > FOR_CANCEL)
                take_poll(loop, who, cqe->res);
            if (who == FOR_CANCEL && cqe->res == -EALREADY) /* it was about to end, and may have armed itself again */
                asked = false;
            io_uring_cqe_seen(&loop->uring, cqe);
        }
    }
}

void loop_linger(struct loop *loop)
{
    struct io_uring_cqe *cqe;

    disarm(loop);
    while (loop->out) {
        int result = wait_tolerate(io_uring_submit_and_wait(&loop->uring, 1));
        if (result < 0)
            return;
        while (!io_uring_peek_cqe(&loop->uring, &cqe)) {
            if (io_uring_cqe_get_data64(cqe) < FOR_CANCEL)
                loop->out--;
            io_uring_cqe_seen(&loop->uring, cqe);
        }
    }
}

void loop_close(struct loop *loop)
{
    io_uring_queue_exit(&loop->uring);
    for (uint32_t i = 0; i < loop->chunk_count; i++) {
        for (int j = 0; j < SLOTS_IN_CHUNK; j++)
            if (loop->chunks[i][j].iovs != loop->chunks[i][j].own)
                free(loop->chunks[i][j].iovs);
        free(loop->chunks[i]);
    }
    loop->chunk_count = 0;
}
