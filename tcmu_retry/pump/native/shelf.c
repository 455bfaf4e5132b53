#include "shelf.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

enum { FLUSHED = 64, START = 72, RECORDS = 4096, GROWTH = 1 << 20, RECORD = 350 /* backends/replay.py */ };
enum { KIND_WRITE = 0, KIND_WRAP = 4 };

struct head {
    uint64_t number, offset, length;
    uint32_t kind, size;
};
_Static_assert(sizeof(struct head) == 32, "_HEAD of backends/shelf.py");

/* Bytes that a record takes, without the end mark behind it. */
static uint64_t weight(uint64_t length)
{
    return (sizeof(struct head) + length + 7) & ~UINT64_C(7);
}

/* What a killed process did up to here is there for the next one; only the compiler could change the order. */
static void put64(struct shelf *shelf, uint64_t place, uint64_t value)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    __atomic_store_n((uint64_t *)(shelf->memory + place), value, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static uint64_t used(const struct shelf *shelf)
{
    uint64_t all = shelf->size - RECORDS;
    return (shelf->next + all - shelf->start) % all;
}

static uint64_t taken(const struct shelf *shelf)
{
    return used(shelf) + (shelf->number - shelf->flushed) * RECORD + shelf->promised;
}

bool shelf_fills(const struct shelf *shelf)
{
    return taken(shelf) > shelf->limit / 2;
}

bool shelf_promise(struct shelf *shelf, uint64_t length)
{
    uint64_t need = weight(length) + RECORD, upto;

    if (taken(shelf) + need > shelf->limit)
        return false;
    /* A store to a page that /run has no room for is SIGBUS. Below `next` it has room, all the way from the beginning. */
    upto = shelf->next + shelf->promised + need + sizeof(struct head);
    upto = upto < shelf->size ? upto : shelf->size;
    if (upto > shelf->room) {
        uint64_t room = (upto + GROWTH - 1) / GROWTH * GROWTH;
        room = room < shelf->size ? room : shelf->size;
        if (posix_fallocate(shelf->file, (off_t)shelf->room, (off_t)(room - shelf->room)))
            return false;
        madvise(shelf->memory + shelf->room, room - shelf->room, MADV_POPULATE_WRITE); /* a fault a page costs more */
        shelf->room = room;
    }
    shelf->promised += need;
    return true;
}

static void publish(struct shelf *shelf, uint64_t place, uint64_t behind, struct head head)
{
    put64(shelf, behind, 0);
    head.number = 0;
    memcpy(shelf->memory + place, &head, sizeof head);
    put64(shelf, place, ++shelf->number);
    shelf->next = behind;
}

void shelf_put(struct shelf *shelf, uint64_t offset, uint64_t length, const struct iovec *pieces, uint32_t count)
{
    uint64_t place = shelf->next, at;

    shelf->promised -= weight(length) + RECORD;
    /* `limit` leaves room for two of the largest, so at the beginning there is room if there is none at the end. With
     * nothing on it, it begins anew: memory that was used lately is faster. */
    if (shelf->start == place ? place > RECORDS : place + weight(length) + sizeof(struct head) > shelf->size) {
        publish(shelf, place, RECORDS, (struct head){.kind = KIND_WRAP});
        if (shelf->start == place) {
            shelf->start = RECORDS;
            put64(shelf, START, RECORDS);
        }
        place = RECORDS;
    }
    at = place + sizeof(struct head);
    for (uint32_t i = 0; i < count; at += pieces[i++].iov_len)
        memcpy(shelf->memory + at, pieces[i].iov_base, pieces[i].iov_len);
    publish(shelf, place, place + weight(length),
            (struct head){.offset = offset, .length = length, .kind = KIND_WRITE, .size = (uint32_t)length});
}

void shelf_flushed(struct shelf *shelf, struct shelf_mark mark)
{
    if (mark.number <= shelf->flushed) /* a later flush was faster */
        return;
    shelf->flushed = mark.number;
    put64(shelf, FLUSHED, mark.number);
    shelf->start = mark.place;
    put64(shelf, START, mark.place);
}
