/* What outlives the process, in C; theory and layout are in tcmu/journal.py. One slot of one or two cache lines a command. */
#ifndef TCMU_RETRY_JOURNAL_H
#define TCMU_RETRY_JOURNAL_H

#include <stdint.h>
#include <string.h>

#include "ring.h"

enum { JOURNAL_FETCHED = 64, JOURNAL_SLOTS = 4096, JOURNAL_IOVS = 256, JOURNAL_UNIT = 4096, JOURNAL_UNKNOWN = 0xFFFF };
enum journal_state { JOURNAL_FREE = 0, JOURNAL_OPEN, JOURNAL_COMPLETING };

struct journal_iov {
    uint32_t unit, length;
};

struct journal_slot {
    uint32_t state, tail;
    double arrived;
    uint16_t attempts, error, count, cdb_length;
    uint8_t compared, aborted, pad[6];
    double failed_at;
    uint8_t cdb[16];
    struct journal_iov iovs[JOURNAL_IOVS];
    uint8_t rest[8];
};
_Static_assert(sizeof(struct journal_slot) == 2112, "the slot of tcmu/journal.py");

/* NULL: it has no place here (yet), or there is no journal. */
static inline struct journal_slot *journal_slot(const struct ring *ring, uint16_t id)
{
    return id < ring->journal_room ? (struct journal_slot *)(ring->journal + JOURNAL_SLOTS) + id : NULL;
}

/* The order is what the next process relies on; only the compiler could change it. */
static inline void journal_state(struct journal_slot *slot, enum journal_state state)
{
    __atomic_store_n(&slot->state, (uint32_t)state, __ATOMIC_RELEASE);
}

/* Before the entry is passed over. */
static inline void journal_open(const struct ring *ring, const struct ring_entry *entry, double now)
{
    struct journal_slot *slot = journal_slot(ring, entry->id);
    uint32_t size = entry->cdb_length < sizeof slot->cdb ? entry->cdb_length : (uint32_t)sizeof slot->cdb;

    if (!slot)
        return;
    slot->arrived = now;
    slot->attempts = slot->error = 0;
    slot->count = (uint16_t)entry->count;
    slot->cdb_length = (uint16_t)entry->cdb_length;
    slot->compared = slot->aborted = 0;
    memcpy(slot->cdb, entry->cdb, size);
    if (entry->count > JOURNAL_IOVS)
        slot->count = JOURNAL_UNKNOWN;
    else
        for (uint32_t i = 0; i < entry->count; i++) {
            const struct ring_iov *iov = &entry->iovs[i];
            if (iov->offset % JOURNAL_UNIT || iov->offset / JOURNAL_UNIT > UINT32_MAX || iov->length > UINT32_MAX)
                slot->count = JOURNAL_UNKNOWN;
            slot->iovs[i].unit = (uint32_t)(iov->offset / JOURNAL_UNIT);
            slot->iovs[i].length = (uint32_t)iov->length;
        }
    journal_state(slot, JOURNAL_OPEN);
}

static inline void journal_fetched(const struct ring *ring)
{
    if (ring->journal)
        __atomic_store_n((uint32_t *)(ring->journal + JOURNAL_FETCHED), ring->next, __ATOMIC_RELEASE);
}

static inline void journal_completing(struct journal_slot *slot, uint32_t tail)
{
    slot->tail = tail;
    journal_state(slot, JOURNAL_COMPLETING);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* nothing of the completion before this */
}

#endif
