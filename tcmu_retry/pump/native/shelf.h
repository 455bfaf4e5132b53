/* The replay log of write-back while the loop has it; theory and layout are in backends/shelf.py. */
#ifndef TCMU_RETRY_SHELF_H
#define TCMU_RETRY_SHELF_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct shelf {
    uint8_t *memory; /* NULL: not ours, or storage that has none */
    int file;
    uint64_t size, room; /* bytes of it: all, and those that have memory */
    uint64_t start, next; /* places: of the first record that is not flushed, and behind the last; equal: none */
    uint64_t number; /* of the last record */
    uint64_t flushed; /* the last one that is durable */
    uint64_t limit; /* bytes of memory, as backends/replay.py counts them */
    uint64_t promised; /* of these, for writes that are out */
};

/* How far a flush will have got if it succeeds. */
struct shelf_mark {
    uint64_t number, place;
};

/* Before a write of so many bytes starts. false: it is full, or /run is; nothing may be put then. */
bool shelf_promise(struct shelf *shelf, uint64_t length);

/* Whether it is time to flush for its own sake. */
bool shelf_fills(const struct shelf *shelf);

/* The storage took a write that had a promise. */
void shelf_put(struct shelf *shelf, uint64_t offset, uint64_t length, const struct iovec *pieces, uint32_t count);

static inline struct shelf_mark shelf_mark(const struct shelf *shelf)
{
    return (struct shelf_mark){shelf->number, shelf->next};
}

/* Everything up to the mark is durable. */
void shelf_flushed(struct shelf *shelf, struct shelf_mark mark);

#endif
